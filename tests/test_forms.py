from __future__ import annotations

import itertools

import pytest
from covering import covering_array
from forms import (
    CHOICES,
    CORNERS,
    COVERING,
    FORMS,
    covering_forms,
    each_batch_of_forms,
    each_form,
    form,
    forms,
    is_form,
)

from tnn_train import TverskyConfig


def missing(rows: list[TverskyConfig], strength: int, choices: dict[str, tuple[object, ...]]) -> list[object]:
    """Return the combinations of values of ``strength`` options that no row has: each looked for in every row."""
    return [
        (options, values)
        for options in itertools.combinations(choices, strength)
        for values in itertools.product(*(choices[option] for option in options))
        if is_form(dict(zip(options, values, strict=True)))
        and not any(all(getattr(row, o) == v for o, v in zip(options, values, strict=True)) for row in rows)
    ]


def test_every_combination_of_two_or_three_options_is_covered_by_few_forms() -> None:
    assert missing(covering_forms(2), 2, CHOICES) == []
    assert missing(COVERING, 3, CHOICES) == []
    assert missing(covering_forms(2), 3, CHOICES) != []
    assert missing(COVERING[:-1], 3, CHOICES) != []
    assert len(FORMS) == len(set(FORMS)) == 1728
    assert len(forms(**CHOICES)) == 5184
    assert len(covering_forms(2)) <= 24
    assert len(COVERING) == len(set(COVERING)) <= 60


def test_corners_are_always_there() -> None:
    for strength in (2, 3):
        assert {form(**corner) for corner in CORNERS} <= set(covering_forms(strength))
    assert {one.model for one in covering_forms(2, model="ratio")} == {"ratio"}
    assert missing(covering_forms(2, model="ratio"), 2, {**CHOICES, "model": ("ratio",)}) == []


def test_the_same_options_give_the_same_array() -> None:
    choices = {"a": (1, 2, 3), "b": (True, False), "c": ("x", "y")}
    expected = [{"a": 1, "b": True, "c": "y"}]
    rows = covering_array(choices, 2, expected)
    assert rows == covering_array(choices, 2, expected)
    assert rows[0] == expected[0]
    assert len(rows) == 6


def test_what_cannot_be_is_neither_covered_nor_asked_for() -> None:
    choices = {"a": (1, 2), "b": (1, 2), "c": (1, 2)}
    rows = covering_array(choices, 2, allowed=lambda row: row["a"] == row["b"])
    assert {(row["a"], row["b"]) for row in rows} == {(1, 1), (2, 2)}
    assert {(row["a"], row["c"]) for row in rows} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert not any(one.opposites and one.feature_bank == "diagonal" for one in (*COVERING, *FORMS))
    assert {one.model for one in (*COVERING, *FORMS) if one.smooth} == {"ratio"}
    assert {(one.thresholds, bool(one.opposites), one.prototype_space) for one in FORMS} == {
        (False, False, "embedding"),
        (True, True, "feature"),
        (True, False, "feature"),
    }


@pytest.mark.parametrize("batched", [False, True])
def test_exhaustive_tests_run_on_the_rest_of_the_product(batched: bool) -> None:
    _, parameters = (each_batch_of_forms() if batched else each_form()).args
    few, rest = [], []
    for parameter in parameters:
        assert "forms" in {mark.name for mark in parameter.marks}
        chosen = rest if "exhaustive" in {mark.name for mark in parameter.marks} else few
        chosen += parameter.values[0] if batched else parameter.values
    assert few == COVERING
    assert set(few) | set(rest) == set(FORMS) | set(COVERING)
    assert len(few) + len(rest) == len(set(FORMS) | set(COVERING))
