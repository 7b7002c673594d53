"""What a model gives for a batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import RunError

__all__ = ["Outputs", "bad_rows", "not_finite"]

_FEW = 512
_NONE = np.empty(0, np.int64)


def not_finite(index: int | None = None) -> RunError:
    """Return the error for an image for which the model gives values that are no finite numbers.

    Args:
        index: Which image of the request it is; ``None`` for one that was sent alone.
    """
    error = RunError(
        f"{'' if index is None else f'images[{index}]: '}the model gives values that are no finite numbers (NaN or "
        "infinity) for this image; look at the image and at the model, which may be in a precision that is too coarse"
    )
    error.index = index
    return error


def bad_rows(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rows of values ``[N, ...]`` that have one that is no finite number, int64, ascending."""
    return np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Args:
        logits: float32 ``[N, classes]``.
        embedding: What the head takes, float32 ``[N, D]``, or a map ``[N, D, h, w]``.
        maps: Where each feature lies, float32 ``[N, F, h, w]``, if that was asked for.
    """

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    maps: NDArray[np.float32] | None = None

    def rows(self, which: slice | list[int]) -> Outputs:
        """Return the outputs for some of the images."""
        maps = None if self.maps is None else self.maps[which]
        return Outputs(self.logits[which], self.embedding[which], maps)

    @property
    def bad_rows(self) -> NDArray[np.int64]:
        """The rows of the logits that have a value that is no finite number, int64, ascending.

        They are looked at in the way that touches the least code and memory, as a model has just filled the caches with
        others. Operators such as ReLU and matrix products hand NaN and infinity in an embedding on to the logits.
        """
        flat = self.logits.reshape(-1)
        if math.isfinite(sum(flat.tolist()) if flat.size <= _FEW else flat.dot(flat)):
            return _NONE
        return bad_rows(self.logits)
