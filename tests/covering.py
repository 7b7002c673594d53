"""Covering arrays: few combinations of options, among which every combination of any two or three values occurs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

Row = dict[str, object]


def covering_array(
    choices: Mapping[str, Sequence[object]],
    strength: int,
    first: Iterable[Row] = (),
    allowed: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Return rows, one value for each option, that cover all combinations of the values of ``strength`` options.

    Greedy: each row is the one of the full product that covers most of what is still missing, the earliest of equals.

    Args:
        choices: The values of each option.
        strength: How many options to combine: 2 finds every fault that takes two values, 3 every one that takes three.
        first: Rows to begin with.
        allowed: Whether there can be such a row; combinations that no such row has are not asked for.
    """
    rows = list(first)
    candidates = [row for row in full_product(choices) if allowed(row)]
    covered = [combinations(row, strength) for row in candidates]
    missing = set().union(*covered)
    for row in rows:
        missing -= combinations(row, strength)
    while missing:
        best = max(range(len(candidates)), key=lambda index: len(covered[index] & missing))
        rows.append(candidates[best])
        missing -= covered[best]
    return rows


def full_product(choices: Mapping[str, Sequence[object]]) -> list[Row]:
    """Return a row for each combination of the values of all options."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def combinations(row: Row, strength: int) -> set[tuple[tuple[str, object], ...]]:
    """Return the combinations ``((option, value), ...)`` of some options that a row covers."""
    return set(itertools.combinations(row.items(), strength))
