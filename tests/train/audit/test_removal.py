"""The margin without features: by hand, and against heads that lack them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from explanations import explainer_of, linear_explainer_of
from forms import CLASSES, each_form, random_head

from tnn_train import LinearHead, TverskyConfig
from tnn_train.audit.removal import curve_steps, named_features, remove_features
from tnn_train.audit.subject import Explained

EFFECTS = [1.0, -2.0, 5.0, 0.0, 3.0, 2.0]
BIAS = 0.5


@pytest.fixture
def by_hand(tmp_path: Path) -> list[Explained]:
    """An image whose values are all 1, so that the weights are what each feature does to the margin."""
    head = LinearHead(len(EFFECTS), CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([EFFECTS, [0.0] * 6, *[[-1.0] * 6] * (CLASSES - 2)]))
        head.bias.zero_()[0] = BIAS
        x = torch.ones(1, len(EFFECTS))
        explain = linear_explainer_of(head, tmp_path)
        return [Explained(*pair) for pair in explain(x.numpy(), head(x).numpy(), 2, 100, 0)]


def test_the_features_that_speak_for_the_class_are_named(by_hand: list[Explained]) -> None:
    assert named_features(by_hand[0]) == [2, 4, 5]
    assert named_features(by_hand[0], 9) == [2, 4, 5, 0]


def test_the_margin_drops_by_what_the_features_do(by_hand: list[Explained]) -> None:
    removal = remove_features(by_hand, draws=200)
    assert removal.margin == pytest.approx([sum(EFFECTS) + BIAS])
    assert removal.named == pytest.approx([10.0])
    assert removal.kept == pytest.approx([10.0 + BIAS])
    assert removal.suffices == 1
    # Three of the five features that do something: 10 triples, each with a sum of its own but for two.
    sums = {1 - 2 + 5, 1 - 2 + 3, 1 - 2 + 2, 1 + 5 + 3, 1 + 5 + 2, 1 + 3 + 2, -2 + 5 + 3, -2 + 5 + 2, -2 + 3 + 2, 10}
    assert {*np.round(removal.random[0], 9).tolist()} == {*map(float, sums)}
    assert removal.wins == pytest.approx((removal.random < 9.5).mean())


def test_the_curves_take_what_does_most_first(by_hand: list[Explained]) -> None:
    curves, whole = remove_features(by_hand).curves, sum(EFFECTS) + BIAS
    left = np.array([sum(EFFECTS), 4, 1, -1, -2, 0]) + BIAS
    assert curves.steps.tolist() == [0, 1, 2, 3, 5, 6]
    assert curves.deletion == pytest.approx(left / whole)
    assert curves.insertion == pytest.approx((np.array([0, 5, 8, 10, 11, 9]) + BIAS) / whole)
    for random in (curves.random_deletion, curves.random_insertion):
        assert sorted([random[0], random[-1]]) == pytest.approx([BIAS / whole, 1])


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0, 1]), (2, [0, 1, 2]), (5, [0, 1, 2, 3, 5]), (10, [0, 1, 2, 3, 5, 8, 10])]
)
def test_a_curve_ends_with_all_features(count: int, expected: list[int]) -> None:
    assert curve_steps(count) == expected


@each_form(strength=2)
def test_margins_are_those_of_heads_that_lack_the_features(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        logits = head(x)
        found = explainer_of(head, tmp_path)(x.numpy(), logits.numpy(), 2, head.num_features, 0)
        explained = [Explained(*pair) for pair in found[:3]]
        removal = remove_features(explained, draws=1)
        for place, one in enumerate(explained):
            classes = [one.best.index, one.other.index]
            edited = head.without(named_features(one), ()).double()(x[[place]].double())[0, classes]
            scale = max(1.0, float(logits.abs().max()))
            assert removal.margin[place] - removal.named[place] == pytest.approx(
                float(edited[0] - edited[1]), abs=1e-4 * scale
            )
