"""Classes whose names are paths: which are, and what the scores of their parents are."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from oracles.hierarchy import parents_at

from tnn_runtime.answers.hierarchy import levels_of
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.ranking import softmax
from tnn_runtime.answers.reject import Reject
from tnn_runtime.answers.results import Answers, LevelScore, plain_levels

NAMES = ("animal/cat/kitten", "vehicle/car", "animal/dog", "animal/cat/adult", "vehicle/truck/big")


def answers_to(logits: list[list[float]], names: tuple[str, ...] = NAMES, temperature: float | None = None) -> Answers:
    values = np.array(logits, np.float32)
    return Answers(Outputs(values, np.zeros((len(values), 1), np.float32)), names, None, temperature)


def test_levels_are_the_parents_from_the_top() -> None:
    top, middle = levels_of(NAMES)
    assert top.names == ("animal", "vehicle")
    assert middle.names == ("animal/cat", "vehicle/car", "animal/dog", "vehicle/truck")
    for depth, level in enumerate((top, middle), 1):
        assert [level.names[owner] for owner in level.owners] == parents_at(NAMES, depth)


@pytest.mark.parametrize(
    "names",
    [("cat", "dog"), ("n/a", "cat"), ("km/h", "m/s"), ("/cat", "/dog"), ("a//b", "a//c"), ("a/", "a/ "), ("cat",), ()],
)
def test_names_that_are_no_paths_have_no_levels(names: tuple[str, ...]) -> None:
    assert levels_of(names) == ()
    if len(names) > 1:
        predictions = answers_to([[0.0] * len(names)], names).predictions(0, 2)
        assert predictions.levels == ()
        assert plain_levels(predictions) == {}
        assert predictions.surest(0.0) is None


@pytest.mark.parametrize("temperature", [None, 0.3, 4.0])
def test_the_score_of_a_parent_is_the_sum_of_those_below_it(temperature: float | None) -> None:
    logits = np.random.default_rng(0).normal(size=(20, len(NAMES))).astype(np.float32)
    answers = answers_to(logits.tolist(), temperature=temperature)
    scores = softmax(logits, temperature)
    for row in range(len(logits)):
        levels = answers.predictions(row, 1).levels
        assert levels == answers.only(row).predictions(0, 1).levels
        for depth, level in enumerate(levels[:-1], 1):
            below = [
                score for name, score in zip(NAMES, scores[row], strict=True) if f"{name}/".startswith(level.label)
            ]
            assert level.score == pytest.approx(sum(below))
            assert f"{levels[depth].label}/".startswith(f"{level.label}/")
        assert levels[-1].score == pytest.approx(scores[row][NAMES.index(levels[-1].label)])
        assert levels[0].score == pytest.approx(max(scores[row][[0, 2, 3]].sum(), scores[row][[1, 4]].sum()))


def test_the_best_parent_need_not_have_the_best_class() -> None:
    predictions = answers_to([[1.0, 1.5, 1.0, 1.0, -3.0]]).predictions(0, 1)
    assert predictions[0].label == "vehicle/car"
    assert [level.label for level in predictions.levels] == ["animal", "animal/cat", "animal/cat/kitten"]
    assert predictions.surest(0.6) == predictions.levels[0]
    assert predictions.surest(0.3) == predictions.levels[1]
    assert predictions.surest(0.99) is None
    assert json.loads(json.dumps(plain_levels(predictions)))["levels"][0]["label"] == "animal"
    assert pickle.loads(pickle.dumps(predictions)).levels == predictions.levels


def test_a_class_above_others_stands_for_itself() -> None:
    names = ("animal/cat", "animal/dog", "car")
    assert levels_of(names)[0].names == ("animal", "car")
    assert answers_to([[0.0, 0.0, 5.0]], names).predictions(0, 1).levels == (
        LevelScore("car", pytest.approx(0.9867, abs=1e-3)),
    )


def test_a_rejected_image_has_no_levels() -> None:
    values = np.zeros((1, len(NAMES)), np.float32)
    rule = Reject("probability", 0.9, 0.99, 100)
    predictions = Answers(Outputs(values, values), NAMES, rule).predictions(0, 1, reject=True)
    assert predictions.rejected
    assert predictions.levels == ()
