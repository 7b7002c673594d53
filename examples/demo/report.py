"""The demo's report: one HTML file with its pictures inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from explained import explain_images, explain_one
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from tnn_runtime import Classifier
from tnn_runtime.drawing import article, style
from tnn_train import ImageData
from tnn_train.report.pictures import figure_url
from tnn_train.report.plots import plot_confusion, plot_curves
from tnn_train.training.loop import TrainResult


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    runs: Mapping[str, TrainResult],
    data: ImageData,
    classifiers: Mapping[str, Classifier],
) -> None:
    """Write ``report.html``.

    Args:
        path: The file to write.
        summary: The content of ``summary.json``.
        runs: The training of each head.
        data: The images.
        classifiers: The loaded bundle of each head, for the explanations.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("report.html.jinja").render(
        summary=summary,
        style=style(),
        opening=article(explain_one(runs["tversky"], data, classifiers["tversky"])),
        curves=figure_url(plot_curves({head: run.history for head, run in runs.items()})),
        confusions={
            head: figure_url(plot_confusion(run.test.confusion, data.class_names, head)) for head, run in runs.items()
        },
        latency=figure_url(_plot_latency(summary["latency"])),
        explained=explain_images(runs, data, classifiers),
    )
    path.write_text(html, encoding="utf-8")


def _plot_latency(latency: Mapping[str, Any]) -> Figure:
    """Draw, for each thread count and batch, the ratio with its interval, and the control beside it."""
    rows = [
        (f"batch {batch}\n{part['threads']} thread{'s' if part['threads'] > 1 else ''}", values)
        for part in (latency, latency["all_threads"])
        for batch, values in part["batch"].items()
    ]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    bars, ratios = figure.subplots(1, 2)
    places = np.arange(len(rows))
    for offset, head in ((-0.2, "tversky"), (0.2, "linear")):
        medians = np.array([values[f"{head}_ms"]["p50"] for _, values in rows])
        tails = np.array([values[f"{head}_ms"]["p99"] for _, values in rows]) - medians
        bars.bar(
            places + offset,
            medians,
            0.4,
            yerr=[np.zeros(len(rows)), tails],
            capsize=3,
            label=f"{head} (median, line to p99)",
        )
    bars.set_ylabel("milliseconds a call")
    bars.set_yscale("log")
    for offset, name, label in ((-0.1, "ratio", "tversky / linear"), (0.1, "aa_ratio", "control: linear / linear")):
        values = np.array([row[name] for _, row in rows])
        intervals = np.array([row[f"{name}_ci95"] for _, row in rows]).T
        errors = np.abs(intervals - values)
        ratios.errorbar(places + offset, values, yerr=errors, fmt="o", capsize=3, label=label)
    ratios.axhline(1, color="grey", linewidth=0.8)
    ratios.set_ylabel("ratio of medians, 95% interval")
    for axes in (bars, ratios):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
        axes.set_xticks(places, [name for name, _ in rows], fontsize=8)
        axes.grid(alpha=0.3, axis="y")
    return figure
