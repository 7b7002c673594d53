"""What a model gives for a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outputs"]


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Args:
        logits: float32 ``[N, classes]``.
        embedding: What the head takes, float32 ``[N, D]``, or a map ``[N, D, h, w]``.
    """

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
