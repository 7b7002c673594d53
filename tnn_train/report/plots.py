"""Pictures of trainings: curves, the confusion matrix, the reliability diagram, and groups of runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tnn_runtime.answers.calibration import Calibration
from tnn_train.evaluation.metrics import Coverage

__all__ = [
    "LABELLED_CLASSES",
    "plot_confusion",
    "plot_coverage",
    "plot_curves",
    "plot_estimates",
    "plot_history",
    "plot_reliability",
    "plot_seeds",
]

LABELLED_CLASSES = 40
"""A confusion matrix of more classes has neither names nor numbers."""

_UNITS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy", "learning_rate": "learning rate"}
_LONGEST_NAME = 18

History = Sequence[Mapping[str, Any]]


def plot_curves(histories: Mapping[str, History]) -> Figure:
    """Draw loss and accuracy over epochs, dashed for training and solid for validation.

    Args:
        histories: For each run its epochs, as in ``metrics.jsonl``.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for number, (name, history) in enumerate(histories.items()):
            _draw_parts(axes, history, quantity, f"C{number}", f"{_plain(name)}, ")
        _finish_epochs(axes, _UNITS[quantity])
    if len(histories):
        axes.legend(loc="lower right", fontsize=8)
    return figure


def plot_history(history: History, quantity: str, best: int | None = None) -> Figure:
    """Draw one quantity of one run over its epochs.

    Args:
        history: Its epochs, as in ``metrics.jsonl``.
        quantity: ``"loss"`` or ``"accuracy"``, for training and validation, or ``"learning_rate"``.
        best: The epoch to mark.
    """
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axes = figure.subplots()
    if quantity == "learning_rate":
        axes.plot([row["epoch"] for row in history], [row[quantity] for row in history], "-", marker=".")
    else:
        _draw_parts(axes, history, quantity, "C0")
    if best is not None:
        axes.axvline(best, color="grey", linewidth=1, linestyle=":", label="best epoch")
    _finish_epochs(axes, _UNITS[quantity])
    if quantity != "learning_rate":
        axes.legend(fontsize=8)
    return figure


def plot_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix: rows are the right classes, columns the predicted ones.

    Args:
        confusion: Counts, ``[classes, classes]``.
        class_names: One name for each class; drawn, with the counts, for up to `LABELLED_CLASSES`.
        title: What it shows.
    """
    labelled = len(class_names) <= LABELLED_CLASSES
    names = [_plain(name) for name in class_names]
    longest = max(map(len, names))
    side = min(14.0, 2.2 + 0.07 * longest + 0.34 * len(names)) if labelled else 7.0
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if labelled:
        axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0)
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8, color=color)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    axes.set_title(_plain(title))
    return figure


def plot_reliability(calibration: Calibration) -> Figure:
    """Draw the accuracy of the answers in each bin of confidence, and below it how many answers lie there."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = len(calibration.share)
    middles = (np.arange(bins) + 0.5) / bins
    above.bar(middles, np.nan_to_num(calibration.accuracy), 0.9 / bins, color="C0", alpha=0.75, label="accuracy")
    above.plot(
        *(calibration.confidence, calibration.accuracy, "o"),
        color="C3",
        markersize=4,
        label="accuracy at mean confidence",
    )
    above.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="accuracy = confidence")
    above.set_ylabel("accuracy")
    above.set_ylim(0, 1.03)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    below.bar(middles, calibration.share, 0.9 / bins, color="grey")
    below.set_ylabel("share of\nthe answers")
    below.set_xlabel("confidence: probability of the predicted class")
    below.set_xlim(0, 1)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def plot_coverage(coverage: Coverage) -> Figure:
    """Draw how accurate the surest answers are, against the share of all that they make up."""
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    axes = figure.subplots()
    axes.step(coverage.share, coverage.accuracy, where="pre")
    axes.set_xlabel("coverage: share of the images that are answered")
    axes.set_ylabel("accuracy of these answers")
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3)
    return figure


def plot_seeds(groups: Mapping[str, Sequence[History]]) -> Figure:
    """Draw validation accuracy over epochs: a thin line for each run, a thick one for the mean of its group.

    Args:
        groups: For each group of runs their epochs, as in ``metrics.jsonl``.
    """
    figure = Figure(figsize=(5, 3.2 + 0.17 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for number, (name, histories) in enumerate(groups.items()):
        style: dict[str, Any] = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
        shortest = min(map(len, histories))
        values = [[row["val_accuracy"] for row in history] for history in histories]
        for history, line in zip(histories, values, strict=True):
            axes.plot([row["epoch"] for row in history], line, ".", **style, linewidth=0.7, alpha=0.6)
            axes.plot([row["epoch"] for row in history], line, **style, linewidth=0.7, alpha=0.6)
        mean = np.mean([line[:shortest] for line in values], axis=0)
        epochs = [row["epoch"] for row in histories[0][:shortest]]
        axes.plot(epochs, mean, **style, linewidth=2, label=_plain(name, 70))
    _finish_epochs(axes, "validation accuracy")
    figure.legend(loc="outside upper left", fontsize=8, frameon=False)
    return figure


def plot_estimates(
    groups: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float] | None]
) -> Figure:
    """Draw test accuracies: a dot for each seed, a diamond and a bar for the mean of the group and its interval.

    Args:
        groups: For each group the values of its seeds.
        intervals: For each group the interval of its mean, ``None`` if it has none.
    """
    figure = Figure(figsize=(5, 0.8 + 0.6 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(groups.items()):
        color = f"C{place % 10}"
        interval = intervals[name]
        if interval is not None:
            axes.plot(interval, [place, place], color=color, linewidth=2)
        axes.plot([np.mean(values)], [place], "D", color=color, markersize=6)
        axes.plot(values, [place + 0.22] * len(values), "o", color=color, alpha=0.6, markersize=4, markeredgewidth=0)
        axes.text(0.02, place - 0.18, _plain(name, 60), transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
    axes.set_yticks([])
    axes.set_ylim(len(groups) - 0.5, -0.6)
    axes.set_xlabel("test accuracy")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _draw_parts(axes: Axes, history: History, quantity: str, color: str, prefix: str = "") -> None:
    epochs = [row["epoch"] for row in history]
    for part, name, style in (("train", "training", "--"), ("val", "validation", "-")):
        values = [row[f"{part}_{quantity}"] for row in history]
        axes.plot(epochs, values, style, marker=".", color=color, label=f"{prefix}{name}")


def _finish_epochs(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _plain(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name shortened to fit, and with nothing that matplotlib would take for a formula."""
    short = name if len(name) <= longest else name[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return short.replace("$", r"\$")
