"""The Tversky measures of one feature at a time, in plain NumPy (arXiv 2506.11035, section 2).

Here are the terms of the sums; the fast forms of the sums themselves are in the model's graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tnn_runtime.explain.base import Values

__all__ = ["COMMON", "DISTINCTIVE", "MEMBERSHIPS", "Features", "Measure", "common_of"]


class Features(NamedTuple):
    """Which features objects have, and how much of each; two arrays of the shape of the feature values."""

    membership: Values
    """1 where the object has the feature and 0 where it lacks it, or the degree between."""

    salience: Values
    """The value of the feature where it is above 0, times its membership; never negative."""


def _hard(values: Values, sharpness: float) -> Features:
    return Features((values > 0).astype(np.float64), np.maximum(values, 0))


def _sigmoid(values: Values, sharpness: float) -> Features:
    membership = np.exp(-np.logaddexp(0, -sharpness * values))
    return Features(membership, np.maximum(values, 0) * membership)


def _product(a: Features, b: Features) -> Values:
    return a.salience * b.salience


def _mean(a: Features, b: Features) -> Values:
    return (a.salience * b.membership + a.membership * b.salience) / 2


def _gmean(a: Features, b: Features) -> Values:
    return np.asarray(np.sqrt(a.salience * b.salience))


def _min(a: Features, b: Features) -> Values:
    return np.minimum(a.salience, b.salience)


def _max(a: Features, b: Features) -> Values:
    return a.salience * b.membership + a.membership * b.salience - np.minimum(a.salience, b.salience)


def _softmin(a: Features, b: Features) -> Values:
    return np.asarray(-np.logaddexp(-a.salience, -b.salience) * a.membership * b.membership)


def _softmin_of_means(a: Features, b: Features) -> Values:
    return _softmin(a, b) + math.log(2) * a.membership * b.membership


def _ignorematch(a: Features, b: Features) -> Values:
    return a.salience * (1 - b.membership)


def _subtractmatch(a: Features, b: Features) -> Values:
    return np.maximum(a.salience - b.salience, 0)


def _excess(a: Features, b: Features) -> Values:
    return a.salience * b.membership - np.minimum(a.salience * a.membership, b.salience * b.membership)


Measure = Callable[[Features, Features], Values]
MEMBERSHIPS: dict[str, Callable[[Values, float], Features]] = {"hard": _hard, "sigmoid": _sigmoid}
COMMON: dict[str, Measure] = {
    "product": _product,
    "mean": _mean,
    "gmean": _gmean,
    "min": _min,
    "max": _max,
    "softmin": _softmin,
}
DISTINCTIVE: dict[str, Measure] = {"ignorematch": _ignorematch, "subtractmatch": _subtractmatch, "excess": _excess}


def common_of(intersection: str, *, is_ratio: bool) -> Measure:
    """Return the measure of what two objects share; in the ratio model none is negative.

    Raises:
        KeyError: If there is no such measure.
    """
    return _softmin_of_means if is_ratio and intersection == "softmin" else COMMON[intersection]
