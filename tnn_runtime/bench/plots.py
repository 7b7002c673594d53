"""Pictures of a benchmark: latency against batch size, and the ratio with its interval beside the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tnn_runtime.bench.comparison import Report
from tnn_runtime.bench.intervals import Estimate, Latency
from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command

__all__ = ["LATENCY_FILE", "RATIO_FILE", "require_matplotlib", "write_plots"]

LATENCY_FILE = "latency.png"
RATIO_FILE = "ratio.png"

_COLORS = {"A": "#0072b2", "B": "#d55e00", "control": "#777777"}
_OUTCOMES = {"shown": "#009e73", "not shown": "#a04000", "too noisy": "#777777"}
_LINES = {"A": "o-", "B": "s--"}
_BESIDE = {"A": 0.97, "B": 1.03}
_LONGEST_NAME = 48
_TITLE_POINTS, _TITLE_SHARE = 9, 0.96
_DPI = 144


def require_matplotlib() -> None:
    """Make sure that plots can be drawn.

    Raises:
        UsageError: If matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"matplotlib is not installed, which --plots needs; run: {install_command('plots')}"
        ) from error


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write `LATENCY_FILE` and `RATIO_FILE` into a folder, which is made if need be, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / LATENCY_FILE, folder / RATIO_FILE]
    for figure, path in zip((_latency_figure(report), _ratio_figure(report)), paths, strict=True):
        figure.savefig(path, dpi=_DPI)
    return paths


def _latency_figure(report: Report) -> Any:
    """Draw the latencies against the batch size, one panel for each thread count."""
    from matplotlib.figure import Figure

    counts = list(dict.fromkeys(c.threads for c in report.comparisons))
    figure = Figure(figsize=(1.2 + 3.9 * len(counts), 4.4), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, counts, strict=True):
        found = sorted((c for c in report.comparisons if c.threads == count), key=lambda c: c.batch)
        _draw_latency(axes, "A", [c.batch for c in found], [c.a for c in found])
        _draw_latency(axes, "B", [c.batch for c in found], [c.b for c in found])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([c.batch for c in found], [str(c.batch) for c in found])
        axes.tick_params(axis="x", which="minor", bottom=False)
        if len(found) == 1:
            axes.set_xlim(found[0].batch / 2, found[0].batch * 2)
        axes.yaxis.set_major_locator(_ticks())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set_title(f"{count} thread{'s' * (count > 1)}", fontsize=10)
        axes.set_xlabel("images a call")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds a call")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _add_title(figure, report)
    return figure


def _ticks() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5))


def _draw_latency(axes: Any, name: str, batches: list[int], latencies: list[Latency]) -> None:
    color = _COLORS[name]
    median = [found.p50.value for found in latencies]
    p90, p99 = ([getattr(found, part).value for found in latencies] for part in ("p90", "p99"))
    axes.plot(batches, median, _LINES[name], color=color, markersize=4, label=f"{name}: p50")
    axes.fill_between(batches, p90, p99, color=color, alpha=0.2, linewidth=0, label=f"{name}: p90 to p99")
    beside = [batch * _BESIDE[name] for batch in batches]
    axes.vlines(beside, p90, p99, color=color, alpha=0.8, linewidth=2.5)


def _ratio_figure(report: Report) -> Any:
    """Draw the ratios with their intervals and the controls beside them, and the margin."""
    from matplotlib.figure import Figure

    comparisons = report.comparisons
    figure = Figure(figsize=(8.4, 1.9 + 0.62 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    limit = 1 + report.margin
    axes.axvspan(1, limit, color="#009e73", alpha=0.1, linewidth=0)
    axes.axvline(1, color="black", linewidth=0.9)
    axes.axvline(
        limit, color="#009e73", linewidth=1.2, linestyle="--", label=f"margin: {100 * report.margin:g}% slower"
    )
    for place, comparison in enumerate(comparisons):
        first = place == 0
        _draw_ratio(axes, place - 0.14, comparison.ratio, "A", "o", "A / B, with 95% interval" if first else None)
        axes.plot(
            [comparison.ratio.upper95],
            [place - 0.14],
            "|",
            color=_COLORS["A"],
            markersize=14,
            markeredgewidth=2,
            label="one-sided 95% bound, which decides" if first else None,
        )
        _draw_ratio(
            axes, place + 0.18, comparison.control, "control", "D", "control: second copy of B / B" if first else None
        )
        axes.text(
            1.015,
            place - 0.14,
            f"{comparison.ratio.value:.3f}  {comparison.claim.outcome}",
            transform=axes.get_yaxis_transform(),
            color=_OUTCOMES[comparison.claim.outcome],
            fontsize=8.5,
            va="center",
        )
    axes.set_yticks(range(len(comparisons)), [c.place for c in comparisons])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_xlabel("ratio of latencies (below 1: A is faster)")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _add_title(figure, report)
    return figure


def _draw_ratio(axes: Any, place: float, found: Estimate, name: str, marker: str, label: str | None) -> None:
    axes.errorbar(
        [found.value],
        [place],
        xerr=[[found.value - found.low], [found.high - found.value]],
        fmt=marker,
        color=_COLORS[name],
        markersize=6 if name == "A" else 4,
        linewidth=2 if name == "A" else 1.3,
        capsize=3,
        label=label,
    )


def _add_title(figure: Any, report: Report) -> None:
    """Write above a figure what it compares, in letters that are small enough for it."""
    title = figure.suptitle(_title(report), fontsize=_TITLE_POINTS)
    share = title.get_window_extent().width / figure.bbox.width
    title.set_fontsize(_TITLE_POINTS * min(1, _TITLE_SHARE / share))


def _title(report: Report) -> str:
    return f"A = {_plain(report.a)}\nB = {_plain(report.b)}\n{_plain(report.machine['cpu'])}, {report.device}"


def _plain(name: str) -> str:
    """Return the end of a name, with nothing that matplotlib would take for a formula."""
    short = name if len(name) <= _LONGEST_NAME else "\N{HORIZONTAL ELLIPSIS}" + name[1 - _LONGEST_NAME :]
    return short.replace("$", r"\$")
