"""Covering arrays: few combinations of options, among which every combination of any two or three values occurs."""

from __future__ import annotations

import functools
import itertools
import operator
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
    bits: dict[object, int] = {}

    def mask(row: Row) -> int:
        return sum(1 << bits.setdefault(one, len(bits)) for one in itertools.combinations(row.items(), strength))

    covered = [mask(row) for row in candidates]
    missing = functools.reduce(operator.or_, covered)
    for row in rows:
        missing &= ~mask(row)
    while missing:
        best = max(range(len(candidates)), key=lambda index: (covered[index] & missing).bit_count())
        rows.append(candidates[best])
        missing &= ~covered[best]
    return rows


def full_product(choices: Mapping[str, Sequence[object]]) -> list[Row]:
    """Return a row for each combination of the values of all options."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
