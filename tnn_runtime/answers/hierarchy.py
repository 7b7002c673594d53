"""Classes whose names are paths, such as ``animal/cat``: which of them lie below which parent.

The probability of a parent is the sum of those of the classes below it (Deng et al. 2014, "Large-Scale Object
Classification Using Label Relation Graphs", ECCV, for a tree whose leaves exclude each other).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.text import SEPARATOR

__all__ = ["Level", "levels_of"]


@dataclass(frozen=True, eq=False)
class Level:
    """What the classes are, seen from one height.

    Args:
        names: Of the parents at this height, in the order of their first classes; a class whose path ends above it
            stands for itself.
        owners: For each class the place of its parent in ``names``, int64 ``[C]``.
    """

    names: tuple[str, ...]
    owners: NDArray[np.int64]

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums ``[N, P]`` over the classes of each parent, of values ``[N, C]``."""
        found = np.zeros((len(values), len(self.names)))
        np.add.at(found.T, self.owners, values.T)
        return found


@lru_cache(maxsize=64)
def levels_of(class_names: Sequence[str]) -> tuple[Level, ...]:
    """Return the levels above the classes, the top first; none where the names are no paths.

    Names are paths if two classes at least have a parent in common: a class that is called ``n/a`` has none. A name
    with an empty part, such as ``/cat`` or ``a//b``, is no path, and stands for itself at every level.

    Args:
        class_names: A tuple with the name of each class.
    """
    paths = [_path(name) for name in class_names]
    parents = Counter(path[:depth] for path in paths for depth in range(1, len(path)))
    if max(parents.values(), default=0) < 2:
        return ()
    levels = []
    for depth in range(1, max(map(len, paths))):
        names = [SEPARATOR.join(path[:depth]) for path in paths]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        levels.append(Level(tuple(places), np.array([places[name] for name in names], np.int64)))
    return tuple(levels)


def _path(name: str) -> tuple[str, ...]:
    parts = tuple(name.split(SEPARATOR))
    return parts if all(part.strip() for part in parts) else (name,)
