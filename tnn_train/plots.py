"""Pictures of a training: curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["plot_confusion", "plot_curves"]


def plot_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw loss and accuracy over epochs, dashed for training and solid for validation.

    Args:
        histories: For each run its epochs, as in ``metrics.jsonl``.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for number, (name, history) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in history]
            for part, style in (("train", "--"), ("val", "-")):
                values = [row[f"{part}_{quantity}"] for row in history]
                axes.plot(
                    epochs,
                    values,
                    style,
                    marker=".",
                    color=f"C{number}",
                    label=f"{name}, {'training' if part == 'train' else 'validation'}",
                )
        axes.set_xlabel("epoch")
        axes.set_ylabel({"loss": "cross-entropy (nats)", "accuracy": "accuracy"}[quantity])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if len(histories) and quantity == "accuracy":
        axes.legend(loc="lower right", fontsize=8)
    return figure


def plot_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix: rows are the right classes, columns the predicted ones.

    Args:
        confusion: Counts, ``[classes, classes]``.
        class_names: One name for each class.
        title: What it shows.
    """
    count = len(class_names)
    side = min(14.0, 2.2 + 0.34 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 40:
        axes.set_xticks(range(count), class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
        axes.set_yticks(range(count), class_names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8, color=color)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    axes.set_title(title)
    return figure
