"""Where in an image the parts of a logit come from: what each feature adds, spread over the places of its map.

The mean of a feature map over all places is the value of the feature. What the feature adds to a logit is spread in
proportion to it, so that a place gets ``added * map / value``, and the mean over all places stays what was added.
Measures act on the value, though, and not on places: images with the same means and other maps have the same logit.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Values", "proportions", "reliability", "spread"]

Values: TypeAlias = NDArray[np.float64]

_LEAST = 0.1
"""Smallest share of the mean magnitude in a map that its mean must have to be spread in full proportion to it."""


def proportions(added: Values, values: Values) -> Values:
    """Return ``added / value``, ``[P, F]``: what a place adds for each unit that the feature has there.

    It is 0 for features whose value is 0.

    Args:
        added: What features add to parts of a logit, ``[P, F]``.
        values: Their values, ``[F]``.
    """
    return np.asarray(np.divide(added, values, out=np.zeros_like(added), where=values != 0))


def reliability(values: Values, maps: Values) -> Values:
    """Return how far values may be divided by, ``[F]``, 0 to 1.

    Where places for a feature and places against it all but cancel, so that the value is less than a tenth of the mean
    magnitude in the map, a proportion would show noise, many times as large as what it stands for. It fades with the
    square of the value then, and what is added is spread the more evenly.

    Args:
        values: The values of the features, ``[F]``.
        maps: Their maps, ``[F, h, w]``.
    """
    needed = _LEAST * np.abs(maps).mean((1, 2))
    share = np.divide(np.abs(values), needed, out=np.ones_like(needed), where=needed > 0)
    return np.asarray(np.minimum(share, 1) ** 2)


def spread(added: Values, slopes: Values, maps: Values) -> Values:
    """Return what all features add to each part at each place, ``[P, h, w]``, whose mean is what they add in all.

    Args:
        added: What features add, ``[P, F]``.
        slopes: How much more a place adds for each unit that the feature has there, ``[P, F]``; 0 spreads evenly.
        maps: Their maps, ``[F, h, w]``.
    """
    deviations = maps - maps.mean((1, 2), keepdims=True)
    return np.asarray(added.sum(1)[:, None, None] + np.tensordot(slopes, deviations, 1))
