"""Affine maps whose weight need not be read as a whole: most of many columns is one number.

What only the image has is taken from all prototypes that lack a feature alike. Of a feature that a single prototype
has, such as an attribute of one class out of a thousand, the column of the weight is then the same number but for one
row. All such columns together are one row of numbers, the same for all prototypes, and one number for each prototype.
At batch 1 a head is as slow as the weights that it reads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["affine_map"]

FEWEST_SAVED = 1 << 18
"""Of how many values a map must be relieved to be worth its additional operators: 1 MiB."""


def affine_map(weight: Tensor, bias: Tensor) -> nn.Module:
    """Return the map from ``x [..., F]`` to ``x W^T + b [..., K]`` that reads the least, in float32.

    Args:
        weight: W, float64 ``[K, F]``.
        bias: b, float64 ``[K]``.
    """
    weight, bias = weight.float(), bias.float()
    rows, columns = _own_columns(weight)
    if len(rows) * len(weight) < FEWEST_SAVED:
        return _Affine(weight, bias)
    return _AffineWithOwnColumns(weight, bias, rows, columns)


def _own_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows, and for each of them the first column where all other rows have one number, ``[R]`` each."""
    low, high = weight.min(0), weight.max(0)
    is_highest = (weight == low.values).sum(0) == len(weight) - 1
    is_lowest = (weight == high.values).sum(0) == len(weight) - 1
    row = torch.where(is_highest, high.indices, low.indices)
    columns = {int(row[column]): column for column in reversed((is_highest | is_lowest).nonzero()[:, 0].tolist())}
    return torch.tensor(list(columns), dtype=torch.int64), torch.tensor(list(columns.values()), dtype=torch.int64)


class _Affine(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class _AffineWithOwnColumns(nn.Module):
    """Three summands: of the other columns; of what all rows of the own columns have; of what one row has in addition.

    Args:
        weight: ``[K, F]``.
        bias: ``[K]``.
        rows: Those that have a column of their own, ``[R]``.
        columns: Their columns, ``[R]``.
    """

    others: Tensor
    own: Tensor
    common: Tensor
    addition: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        is_own = torch.zeros(weight.shape[1], dtype=torch.bool)
        is_own[columns] = True
        own = torch.full((len(weight),), int(columns[0]))
        own[rows] = columns
        # Any row but its own tells what all others have.
        common, addition = torch.zeros(len(weight)), torch.zeros(len(weight))
        common[rows] = weight[(rows + 1) % len(weight), columns]
        addition[rows] = weight[rows, columns] - common[rows]
        self.rest = _Affine(weight[:, ~is_own], bias)
        self.register_buffer("others", (~is_own).nonzero()[:, 0])
        self.register_buffer("own", own)
        self.register_buffer("common", common.unsqueeze(0))
        self.register_buffer("addition", addition)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.rest(x.index_select(-1, self.others))
        own = x.index_select(-1, self.own)
        return values + self.addition * own + functional.linear(own, self.common)
