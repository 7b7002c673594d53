"""How much there is to read in an explanation: from the effects of the features on the margin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["entropy", "gini", "size"]

_COUNTS = 0.1


def size(effects: NDArray[np.float64], threshold: float = _COUNTS) -> int:
    """Return how many features count: whose effect is above a share of the largest one, without signs.

    The local explanation size of Schlinge et al. (2025, arXiv 2507.06819), with features in place of prototypes.

    Args:
        effects: Of each feature, float64 ``[F]``.
        threshold: The share, 0 to 1.
    """
    sizes = np.abs(effects)
    return int((sizes > threshold * sizes.max(initial=0.0)).sum())


def entropy(effects: NDArray[np.float64]) -> float:
    """Return the entropy in bits of how the effects are shared out among the features; 0 if there are none.

    The complexity of an explanation by Bhatt et al. (2020, arXiv 2005.00631, definition 3). With the entropy H it is as
    hard to read as ``2 ** H`` features of equal effect.

    Args:
        effects: Of each feature, float64 ``[F]``; signs do not count.
    """
    sizes = np.abs(effects)
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def gini(effects: NDArray[np.float64]) -> float:
    """Return the Gini index of the effects: 0 if all features do the same, near 1 if one does everything.

    The sparseness of an explanation by Chalasani et al. (2020, arXiv 1810.06583). 0 if there are none.

    Args:
        effects: Of each of all F features, those that do nothing included, float64 ``[F]``; signs do not count.
    """
    sizes = np.sort(np.abs(effects))
    if not sizes.any():
        return 0.0
    count = len(sizes)
    ranks = np.arange(1, count + 1)
    return float(1 - 2 * (sizes / sizes.sum() * (count - ranks + 0.5)).sum() / count)
