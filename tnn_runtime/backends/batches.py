"""The batch sizes that a GPU is prepared for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.manifest import BatchBounds

__all__ = ["bucket_sizes", "fill_up"]


def bucket_sizes(bounds: BatchBounds, largest: int) -> tuple[int, ...]:
    """Return the smallest batch that a graph takes, the largest that it will get, and the powers of two between them.

    A batch is filled up to the next of them, so that the GPU sees few shapes: for each it chooses kernels once, and
    records a graph once. At most half of a batch is filling.

    Args:
        bounds: What the graph takes.
        largest: The largest batch that is asked for; a graph may take less, or need more.
    """
    first = bounds.smallest
    last = max(first, largest if bounds.largest is None else min(largest, bounds.largest))
    return tuple(sorted({first, last, *(1 << place for place in range(17) if first < 1 << place < last)}))


def fill_up(images: NDArray[np.uint8], sizes: Sequence[int], smallest: int = 1) -> NDArray[np.uint8]:
    """Return the images, and as many more as the next batch size needs.

    Rows are repeated: they cost no more than zeros, and give no overflow that the images themselves do not give.

    Args:
        images: At least one.
        sizes: The batch sizes, smallest first; empty where any is as good as another.
        smallest: The least that the graph takes.
    """
    count = len(images)
    size = next((size for size in sizes if size >= count), max(count, smallest))
    return images if size == count else np.resize(images, (size, *images.shape[1:]))
