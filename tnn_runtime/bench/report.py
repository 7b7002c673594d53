"""What a benchmark found, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tnn_runtime.bench.comparison import Memory, Report
from tnn_runtime.bench.intervals import Latency
from tnn_runtime.bundle.storage import write_text

__all__ = ["SCHEMA_VERSION", "columns", "table", "write_report"]

SCHEMA_VERSION = 1


def table(report: Report) -> str:
    """Return all but the samples as text."""
    comparisons = report.comparisons
    latencies = [
        [str(c.threads), str(c.batch), name, *_percentiles(found), f"{found.images_per_second:.1f}", _memory(memory)]
        for c in comparisons
        for name, found, memory in (("A", c.a, c.a_memory), ("B", c.b, c.b_memory))
    ]
    ratios = [
        [
            str(c.threads),
            str(c.batch),
            c.ratio.text(),
            c.control.text(),
            c.difference_us.text(0),
            c.claim.outcome,
        ]
        for c in comparisons
    ]
    where = ["threads", "batch"]
    return "\n\n".join(
        [
            _heading(report),
            columns([*where, "", "p50 ms (95% interval)", "p90 ms", "p99 ms", "images/s", "MiB"], latencies),
            columns(
                [*where, "A/B (95% interval)", "control B/B", "A - B in us", f"no slower by {100 * report.margin:g}%?"],
                ratios,
            ),
            *_device_times(report),
            "\n".join([*(f"{c.place}: {c.claim.text}" for c in comparisons), *_notes(report)]),
        ]
    )


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in columns, aligned to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    )


def write_report(report: Report, path: Path) -> None:
    """Write everything, samples included, as JSON; ``schemas/bench-1.json`` describes it."""
    content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(report)}
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def _heading(report: Report) -> str:
    about, clock = report.machine, report.clock_mhz
    told = [
        f"{about['cpu']}{', virtual' if about['virtual'] else ''}, {about['usable_cores']} of {about['cores']} cores",
        f"governor {about['governor']}",
        "clock unknown"
        if clock is None
        else f"clock {clock['min']:.0f} to {clock['max']:.0f} MHz, mean {clock['mean']:.0f}",
        f"load before {about['load']}",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return "\n".join(
        [
            f"A = {report.a}",
            f"B = {report.b}",
            ", ".join(told),
            f"{report.device}, {versions}, python {about['python']}, numpy {about['numpy']}",
            f"{report.processes} processes for each thread count, {report.blocks} blocks in each, seed {report.seed}",
        ]
    )


def _percentiles(found: Latency) -> list[str]:
    return [found.p50.text(), f"{found.p90.value:.3f}", f"{found.p99.value:.3f}"]


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "-"
    device = "" if memory.device_mib is None else f" + {memory.device_mib:.0f} GPU"
    return f"{memory.resident_mib:.0f}{device}"


def _device_times(report: Report) -> list[str]:
    """Return the table of the times that the GPU told, if it did."""
    rows = [
        [str(c.threads), str(c.batch), *(found.text() for found in (told.a.p50, told.b.p50, told.ratio, told.control))]
        for c in report.comparisons
        if (told := c.device_time) is not None
    ]
    heads = ["threads", "batch", "GPU time of A, p50 ms", "of B, p50 ms", "A/B (95% interval)", "control B/B"]
    return [columns(heads, rows)] if rows else []


def _notes(report: Report) -> list[str]:
    notes = [
        f"{c.place}: {c.unstable} of {3 * report.processes} warm-ups did not become stable"
        for c in report.comparisons
        if c.unstable
    ]
    cores = report.machine["usable_cores"]
    notes += [
        f"{threads} threads share {cores} cores: one that waits for its turn holds up all"
        for threads in dict.fromkeys(c.threads for c in report.comparisons)
        if threads > cores
    ]
    if report.no_device_time is not None:
        notes.append(f"the time of the GPU alone was not taken: {report.no_device_time}")
    return notes
