"""The batch sizes that a GPU is prepared for."""

from __future__ import annotations

from tnn_runtime.manifest import BatchBounds

__all__ = ["bucket_sizes"]


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
