"""Initial values of feature banks and prototypes that follow from no data."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["INITS"]


def _uniform(rows: Tensor, gain: float) -> None:
    bound = gain * math.sqrt(3 / rows.shape[1])
    nn.init.uniform_(rows, -bound, bound)


def _normal(rows: Tensor, gain: float) -> None:
    nn.init.normal_(rows, std=gain / math.sqrt(rows.shape[1]))


INITS: dict[str, Callable[[Tensor, float], object]] = {
    "uniform": _uniform,
    "normal": _normal,
    "xavier_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
"""Functions that fill ``[rows, D]`` in place. Rows have the norm ``gain``: orthogonal ones exactly, uniform and normal
ones on average; ``xavier_uniform`` has the bound of `torch.nn.init.xavier_uniform_`."""
