"""Which prototypes are of which class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_runtime.errors import UsageError

__all__ = ["Places", "places_of"]


class Places(NamedTuple):
    """The prototypes of each class as a rectangle: classes with fewer than others have some of theirs again.

    Args:
        prototypes: Their positions, int64 ``[C, K]``.
        log_copies: The logarithm of how often each of them is there, ``[C, K]``: less it, a log-sum-exp over the row is
            that over the prototypes of the class.
    """

    prototypes: Tensor
    log_copies: Tensor


def places_of(owners: Sequence[int], num_classes: int) -> Places:
    """Return the rectangle of some prototypes.

    Args:
        owners: The class of each, ascending.
        num_classes: C.

    Raises:
        UsageError: If they do not ascend, or a class has none.
    """
    owned: list[list[int]] = [[] for _ in range(num_classes)]
    for place, owner in enumerate(owners):
        if not 0 <= owner < num_classes or (place and owner < owners[place - 1]):
            raise UsageError(f"got owners {list(owners)}; expected a class below {num_classes} a prototype, ascending")
        owned[owner].append(place)
    if [] in owned:
        raise UsageError(f"got owners {list(owners)}; class {owned.index([])} has no prototype: give it one")
    most = max(map(len, owned))
    rows = [[own[turn % len(own)] for turn in range(most)] for own in owned]
    copies = [[row.count(place) for place in row] for row in rows]
    return Places(torch.tensor(rows), torch.tensor(copies, dtype=torch.float32).log())
