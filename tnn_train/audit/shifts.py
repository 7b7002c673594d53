"""Whether a small shift of the image leaves an explanation as it is.

Source: the continuity of Nauta et al. (2023, arXiv 2201.08164), as Schlinge et al. (2025, arXiv 2507.06819) measure it:
what an augmentation that a person hardly sees changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tnn_train.audit.removal import named_features
from tnn_train.audit.subject import Explained

__all__ = ["SHIFTS", "named_overlap", "same_class", "shifted"]

SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Down and right, in units of the shift."""


def shifted(images: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Return images that are moved by some pixels; the pixels at the border are repeated.

    Args:
        images: uint8 ``[n, H, W, C]``.
        down: By how many pixels, negative for up.
        right: By how many pixels, negative for left.
    """
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return np.ascontiguousarray(images[:, rows][:, :, columns])


def same_class(before: Sequence[Explained], after: Sequence[Explained]) -> float:
    """Return the share of images whose best class stays the same."""
    return float(np.mean([one.best.index == other.best.index for one, other in zip(before, after, strict=True)]))


def named_overlap(before: Sequence[Explained], after: Sequence[Explained]) -> float:
    """Return the mean Jaccard index of the named features, of images whose two best classes stay the same; else NaN.

    The Jaccard index is the share of features named in both, out of those named in either: 0 to 1.
    """
    found = [
        len(ours & theirs) / len(ours | theirs)
        for one, other in zip(before, after, strict=True)
        if (one.best.index, one.other.index) == (other.best.index, other.other.index)
        for ours, theirs in [(set(named_features(one)), set(named_features(other)))]
        if ours | theirs
    ]
    return float(np.mean(found)) if found else float("nan")
