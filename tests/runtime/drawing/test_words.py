"""The sentence that stands on a drawing, and how numbers and places are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drawn import PICTURE, explanation, lead

from tnn_runtime import FeatureParts, Part, UsageError
from tnn_runtime.drawing import Item, strongest_features
from tnn_runtime.drawing.words import number, percent, place, sentence
from tnn_runtime.explain.result import FeatureLead


@pytest.mark.parametrize(
    ("leads", "expected"),
    [
        (
            [lead(0, "3 or 7", 1.25), lead(1, "9", 0.9, False), lead(2, "loop", -0.4)],
            "7 rather than 9: it has “3 or 7” (+1.25) and lacks “9” (+0.90); for 9 speaks that it has “loop” (-0.40).",
        ),
        (
            [lead(0, "a", 3.0), lead(1, "b", 2.0), lead(2, "c", 1.0, False), lead(3, "d", 0.9), lead(4, "e", 0.1)],
            "7 rather than 9: it has “a” (+3.00) and “b” (+2.00), and lacks “c” (+1.00).",
        ),
        (
            [lead(0, "not 9", 1.0), lead(1, "9", 0.5, False), lead(2, "not not 3", 0.25)],
            "7 rather than 9: it has “3” (+0.25) and lacks “9” (+1.50).",
        ),
        (
            [lead(53, None, 1.0, None), lead(4, None, 0.5, None)],
            "7 rather than 9: it has feature 53 (+1.00) and feature 4 (+0.50).",
        ),
        (
            [lead(5, None, -1.0)],
            "7 rather than 9: no single feature decides it; for 9 speaks that it has feature 5 (-1.00).",
        ),
        ([], "7 rather than 9: no single feature decides it."),
    ],
)
def test_why_this_and_not_that_is_one_sentence(leads: list[FeatureLead], expected: str) -> None:
    words = "".join(sentence(Item(explanation(leads=tuple(leads)), PICTURE)))
    assert words.replace("\N{MINUS SIGN}", "-") == expected


@pytest.mark.parametrize(("score", "told"), [(None, ""), (0.31, " (reject score 0.31)"), (-9.0, " (reject score -9)")])
def test_a_rejected_image_says_so(score: float | None, told: str) -> None:
    words = "".join(sentence(Item(explanation(), PICTURE, rejected=True, reject_score=score)))
    assert words.startswith(f"Rejected, as the model is not sure enough{told}. Its best answer is 7 rather than 9: ")


def test_without_another_class_the_summary_is_told() -> None:
    alone = explanation()
    alone = type(alone)(**{**vars(alone), "contrast": None})
    assert "".join(sentence(Item(alone, PICTURE))) == f"{alone.summary}."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.25, "+1.25"),
        (-0.3, "-0.30"),
        (0.0, "0"),
        (-0.0, "0"),
        (123.4, "+123"),
        (0.00412, "+0.004"),
        (-2e-9, "\N{ALMOST EQUAL TO}0"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value).replace("\N{MINUS SIGN}", "-") == text


@pytest.mark.parametrize(
    ("score", "text"), [(0.0001, "<0.1%"), (0.5, "50.0%"), (0.99999, ">99.9%"), (1.0, "100.0%"), (0.0, "0.0%")]
)
def test_scores(score: float, text: str) -> None:
    assert percent(score) == text


@pytest.mark.parametrize(
    ("shape", "index", "words"),
    [
        ((7, 7), (0, 0), "at the top left"),
        ((7, 7), (3, 3), "in the centre"),
        ((7, 7), (3, 6), "on the right"),
        ((2, 2), (1, 0), "at the bottom left"),
        ((1, 1), (0, 0), "in the centre"),
        ((9, 3), (8, 1), "at the bottom"),
    ],
)
def test_places(shape: tuple[int, int], index: tuple[int, int], words: str) -> None:
    values = np.zeros(shape, np.float32)
    values[index] = 1
    assert place(values) == words


@pytest.mark.parametrize(
    ("leads", "expected"),
    [
        ((lead(5, None, 3.0), lead(4, None, -2.0), lead(1, None, 1.0), lead(0, None, 0.9)), [5, 4, 1]),
        ((lead(5, None, 3.0), lead(4, None, 0.01)), [5, 4]),
        ((lead(4, None, 0.01), lead(7, None, 3.0)), [7, 4]),
        ((), []),
    ],
)
def test_the_features_that_set_apart_come_first(leads: Any, expected: list[int]) -> None:
    assert strongest_features(explanation(leads=leads)) == expected


@pytest.mark.parametrize("nothing", [[], ()])
def test_nothing_to_draw(nothing: Any) -> None:
    with pytest.raises(UsageError, match="got no explanation to draw; expected at least one"):
        Item(nothing, PICTURE)


def test_features_that_do_nothing_in_the_image_have_no_faces() -> None:
    shown = explanation(leads=(lead(5, None, 3.0),))
    idle = FeatureParts(6, (Part("similarity", 1, 0.0),), None)
    assert strongest_features(replace(shown, features=(*shown.features, idle))) == [5]
