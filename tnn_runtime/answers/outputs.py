"""What a model gives for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import RunError

__all__ = ["Outputs", "not_finite"]

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


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Args:
        logits: float32 ``[N, classes]``.
        embedding: What the head takes, float32 ``[N, D]``, or a map ``[N, D, h, w]``.
        extra: Those of the other outputs of the graph that were asked for, by name, float32 ``[N, ...]``.
    """

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    extra: Mapping[str, NDArray[np.float32]] = MappingProxyType({})

    def rows(self, which: slice | list[int], names: Iterable[str] | None = None) -> Outputs:
        """Return the outputs for some of the images; those in ``extra`` that are named, or all of them."""
        kept = {name: self.extra[name][which] for name in (self.extra if names is None else names)}
        return Outputs(self.logits[which], self.embedding[which], kept)

    @property
    def bad_rows(self) -> NDArray[np.int64]:
        """The rows with a value that is no finite number, int64, ascending.

        Finite logits do not tell that the embedding is finite: the minimum of an infinity and a number is the number.
        """
        looked_at = self.logits, self.embedding, *self.extra.values()
        if all(np.count_nonzero(np.isfinite(values)) == values.size for values in looked_at):
            return _NONE
        good = [np.isfinite(values).all(axis=tuple(range(1, values.ndim))) for values in looked_at]
        return np.flatnonzero(~np.logical_and.reduce(good))
