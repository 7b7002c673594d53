"""Covering arrays: few combinations of options, among which every combination of any two or three values occurs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

Row = dict[str, object]


def covering_array(choices: Mapping[str, Sequence[object]], strength: int, first: Iterable[Row] = ()) -> list[Row]:
    """Return rows, one value for each option, that cover all combinations of the values of ``strength`` options.

    Greedy: each row is the one of the full product that covers most of what is still missing, the earliest of equals.

    Args:
        choices: The values of each option.
        strength: How many options to combine: 2 finds every fault that takes two values, 3 every one that takes three.
        first: Rows to begin with.
    """
    rows = list(first)
    missing = {
        tuple(zip(names, values, strict=True))
        for names in itertools.combinations(choices, strength)
        for values in itertools.product(*(choices[name] for name in names))
    }
    for row in rows:
        missing -= combinations(row, strength)
    candidates = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    covered = [combinations(row, strength) for row in candidates]
    while missing:
        best = max(range(len(candidates)), key=lambda index: len(covered[index] & missing))
        rows.append(candidates[best])
        missing -= covered[best]
    return rows


def combinations(row: Row, strength: int) -> set[tuple[tuple[str, object], ...]]:
    """Return the combinations ``((option, value), ...)`` of some options that a row covers."""
    return set(itertools.combinations(row.items(), strength))
