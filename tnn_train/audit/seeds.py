"""Whether two seeds lead to the same prototypes and features.

Embeddings of two trainings have nothing in common, and so have the vectors of their prototypes. What can be compared is
what they say of the same images: the similarities of a prototype, or the values of a feature, to all of them, which is
its *profile*. The prototypes of two seeds are paired so that the sum of the correlations of their profiles is as large
as possible (Kuhn 1955; `scipy.optimize.linear_sum_assignment`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["Matched", "correlations", "match", "within_classes"]

Profiles = NDArray[np.float64]


class Matched:
    """The profiles of two seeds, paired.

    Attributes:
        correlations: Pearson's, of each pair, ``[min(P, Q)]``.
        pairs: Which are paired, int64 ``[min(P, Q), 2]``.
    """

    def __init__(self, correlations: NDArray[np.float64], pairs: NDArray[np.int64]) -> None:
        self.correlations = correlations
        self.pairs = pairs

    @property
    def mean(self) -> float:
        """The mean correlation of the pairs."""
        return float(self.correlations.mean())


def match(first: Profiles, second: Profiles, *, signed: bool = True) -> Matched:
    """Pair the profiles of two seeds over the same images.

    Args:
        first: Profiles as columns, ``[N, P]``.
        second: Those of the other seed, ``[N, Q]``.
        signed: Whether a negative correlation counts against a pair; else its size counts, for features that may point
            either way.

    A profile that is the same for all images correlates with none.
    """
    table = _standardised(first).T @ _standardised(second)
    if not signed:
        table = np.abs(table)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return Matched(table[rows, columns], np.stack([rows, columns], 1))


def correlations(first: Profiles, second: Profiles) -> NDArray[np.float64]:
    """Return Pearson's correlation of each profile with the one in the same column of another array, ``[P]``.

    Args:
        first: ``[N, P]``.
        second: ``[N, P]``.
    """
    return np.asarray((_standardised(first) * _standardised(second)).sum(0))


def within_classes(profiles: Profiles, labels: NDArray[np.int64]) -> Profiles:
    """Return profiles less the mean of each class: how they order the images of a class among each other.

    Two classifiers that are right agree on the classes, whatever their prototypes are. This is what is left.

    Args:
        profiles: ``[N, P]``.
        labels: The classes of the images, ``[N]``.
    """
    classes, places = np.unique(labels, return_inverse=True)
    means = np.stack([profiles[places == place].mean(0) for place in range(len(classes))])
    return np.asarray(profiles - means[places])


def _standardised(profiles: Profiles) -> Profiles:
    centred = profiles - profiles.mean(0)
    lengths = np.linalg.norm(centred, axis=0)
    # What rounding has left of a profile that is the same for all images is none.
    is_flat = lengths <= 1e-9 * np.linalg.norm(profiles, axis=0)
    return np.asarray(np.where(is_flat, 0, centred / np.where(is_flat, 1, lengths)))
