"""Parents of classes whose names are paths, by their definition, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def parents_at(names: Sequence[str], depth: int) -> list[str]:
    """Return the parent of each class at a depth, 1 at the top."""
    return ["/".join(name.split("/")[:depth]) for name in names]


def hierarchy_loss(
    names: Sequence[str],
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    weight: NDArray[np.float64],
    smoothing: float,
    *,
    is_blended: bool,
) -> float:
    """Return the mean over the levels of the cross-entropy of the parents.

    Args:
        names: The classes, paths of at least two parts.
        logits: ``[n, C]``.
        targets: The share of each class, ``[n, C]``.
        weight: Of each class, ``[C]``.
        smoothing: What is spread over all parents.
        is_blended: Whether the sum is divided by the number of images, and not by their weights.
    """
    losses = []
    for depth in range(1, max(name.count("/") for name in names) + 1):
        owners = parents_at(names, depth)
        total = whole = 0.0
        for values, shares in zip(logits, targets, strict=True):
            probabilities = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
            sums = {one: sum(p for p, own in zip(probabilities, owners, strict=True) if own == one) for one in owners}
            for place, share in enumerate(shares):
                right = -np.log(sums[owners[place]])
                spread = np.mean([-np.log(value) for value in sums.values()])
                total += weight[place] * share * ((1 - smoothing) * right + smoothing * spread)
                whole += weight[place] * share
        losses.append(total / (len(logits) if is_blended else whole))
    return float(np.mean(losses))
