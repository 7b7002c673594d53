"""What a feature or a prototype looks like: the training images that have it most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Exemplars"]


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The training images that have a feature most, or are most like a prototype.

    Args:
        images: Small pictures of them, uint8 ``[n, h, w, c]``, those with the largest values first.
        labels: The class of each.
        values: How much of the feature each has.
        boxes: Where it is in each, ``(top, left, bottom, right)`` in pixels of these pictures; ``None`` where there are
            no maps.
        shares: For the name of each class, the share of its training images that have the feature, 0 to 1.
        description: What it is, in a plain sentence, if there is one.
    """

    images: NDArray[np.uint8]
    labels: tuple[str, ...]
    values: tuple[float, ...]
    boxes: tuple[tuple[int, int, int, int], ...] | None
    shares: Mapping[str, float]
    description: str | None
