"""What came out: accuracies paired by seed, and what the features of each head are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from features import FeatureFacts
from scipy.stats import t as student

from tnn_train.report.compare import Estimate, Table
from tnn_train.training.results import read_run

__all__ = ["MARGIN", "accuracy_table", "feature_table"]

MARGIN = 0.005
"""Heads whose accuracies differ by less count as equivalent."""


def accuracy_table(setting: str, runs: Mapping[str, Sequence[Path]]) -> Table:
    """Return how accurate each head is, and how it differs from the first one.

    Args:
        setting: What was trained, for the title.
        runs: The run folders of each head, in the order of the seeds.
    """
    results = {arm: [read_run(folder).results for folder in folders] for arm, folders in runs.items()}
    baseline = next(iter(results.values()))
    rows = []
    for arm, found in results.items():
        (rate,) = {result.config["train"]["learning_rate"] for result in found}
        row = [arm, f"{rate:g}", str(len(found)), f"{100 * np.mean([result.test_accuracy for result in found]):.2f}"]
        if found is baseline:
            rows.append((*row, *4 * ("",)))
            continue
        accuracy, loss, ece = (
            Estimate(tuple(scale * (getattr(a, name) - getattr(b, name)) for a, b in zip(found, baseline, strict=True)))
            for name, scale in (("test_accuracy", 100), ("test_loss", 1), ("ece", 1))
        )
        equivalence = _equivalence(accuracy, 100 * MARGIN)
        rows.append((*row, accuracy.text("+.2f"), equivalence, loss.text("+.4f"), ece.text("+.4f")))
    return Table(
        f"{setting}: means over the seeds, and differences from {next(iter(runs))} paired by seed with 95% intervals",
        (
            *("head", "learning rate", "seeds", "test accuracy in %", "difference in points"),
            *(f"equivalent within {100 * MARGIN:g} points", "loss", "ECE"),
        ),
        tuple(rows),
    )


def feature_table(setting: str, facts: Mapping[str, FeatureFacts]) -> Table:
    """Return what the features of each head are, means over the seeds.

    Args:
        setting: What was trained, for the title.
        facts: What was found of each head.
    """
    parts = {"common": "common", "input_only": "input-only", "prototype_only": "prototype-only"}
    return Table(
        f"{setting}: features, on test images",
        (
            *("head", "features", "in no image"),
            *(f"{title}: share that differs between classes" for title in parts.values()),
            *("centrality", "agreement across seeds", "groups of classes in common"),
        ),
        tuple(
            (
                *(arm, str(found.count), f"{found.dead:.1f}"),
                *(_percent(found.shares.get(name)) for name in parts),
                *("-" if value is None else f"{value:.2f}" for value in (found.centrality, found.agreement)),
                _percent(found.common_groups),
            )
            for arm, found in facts.items()
        ),
    )


def _equivalence(difference: Estimate, margin: float) -> str:
    """Return the result of two one-sided t tests, whose null hypotheses are a difference beyond either margin."""
    count = len(difference.values)
    error = float(np.std(difference.values, ddof=1)) / count**0.5 if count > 1 else 0.0
    if not error:
        return "-"
    p = float(student.sf((margin - abs(difference.mean)) / error, count - 1))
    return f"{'yes' if p < 0.05 else 'no'} (p = {p:.2g})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
