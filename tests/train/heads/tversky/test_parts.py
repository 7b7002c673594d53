from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest
import torch
from explanations import explainer_of
from forms import CLASSES, each_form, head_with, random_head

from tnn_train import TverskyConfig
from tnn_train.heads.tversky.parts import PartSize, class_parts, feature_parts, measure_parts, used_parts

IMAGES = torch.tensor([[3.0, 1], [1, 0]])
"""With the prototypes (1, 0) and (0, 1): shared are 3 and 1, 1 and 0; only the images have 1 and 3, 0 and 1."""

SHARED = PartSize(5 / 4, sqrt((2 + 0.5) / 4), (2 + 0.5) / (10 + 1))
"""Of the numbers 3 and 1, 1 and 0 of two classes: their squares are 10 and 1, those of their distances 2 and 0.5."""


@each_form()
def test_the_terms_of_the_features_add_up_to_the_measures(config: TverskyConfig) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        a, b = head.project(x), head.prototype_values
        for terms, whole in zip(feature_parts(head, a, b), head.parts(a, b), strict=True):
            torch.testing.assert_close(terms.sum(0), whole, rtol=1e-4, atol=1e-4)


@each_form(2)
def test_the_parts_of_a_class_are_those_of_its_explanation(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        parts, logits = class_parts(head, head.evidence(x)), head(x).numpy()
    for number, explanations in enumerate(explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, 5)):
        for one in explanations:
            for name, values in parts.items():
                assert one.part(name).value == pytest.approx(values[number, one.index].item(), rel=1e-3, abs=1e-4)


def test_size_and_share_of_the_parts_of_a_contrast_model() -> None:
    head = head_with([[1, 0], [0, 1]], difference="ignorematch", alpha=1, beta=0, theta=2, fixed=("beta",))
    found = measure_parts(head, [head.evidence(IMAGES)])
    assert set(found) == {"common", "input_only"}
    assert found["common"] == _approx(PartSize(2 * SHARED.size, 2 * SHARED.spread, SHARED.share))
    assert found["input_only"] == _approx(SHARED)


def test_batches_add_up() -> None:
    head = head_with([[1, 0], [0, 1]], difference="ignorematch", alpha=1, theta=1)
    found = measure_parts(head, [head.evidence(IMAGES[:1]), head.evidence(IMAGES[1:])])
    assert found["common"] == _approx(SHARED)


def test_the_ratio_model_weights_what_it_divides_by() -> None:
    head = head_with([[1, 0], [0, 1]], model="ratio", difference="ignorematch", alpha=0.5, beta=0.2, theta=3)
    found = measure_parts(head, [head.evidence(IMAGES)])
    assert found["common"] == _approx(SHARED)
    assert found["input_only"] == _approx(PartSize(SHARED.size / 2, SHARED.spread / 2, SHARED.share))
    # Only the second image lacks a feature of a prototype: 0 and 1, and the first one none.
    assert found["prototype_only"] == _approx(PartSize(0.2 / 4, 0.2 * sqrt(0.5 / 4), 0.5))


def test_a_linear_map_weights_prototypes_and_may_turn_their_sense_around() -> None:
    head = head_with([[1, 0], [0, 1]], num_prototypes=2, classes=2, difference="ignorematch", alpha=1, beta=1, theta=1)
    assert head.linear is not None
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0], [-1, 0]]))
    # Common is 3 and -3, 1 and -1: its mean over the classes is 0.
    assert measure_parts(head, [head.evidence(IMAGES)])["common"] == _approx(PartSize(2, sqrt(5), 1))


def test_a_part_that_is_0_or_the_same_for_all_classes_has_no_share() -> None:
    head = head_with([[1, 0], [1, 0]], difference="ignorematch", beta=0)
    found = measure_parts(head, [head.evidence(IMAGES)])
    assert found["prototype_only"] == PartSize(0, 0, 0)
    assert found["common"].size > 0
    assert found["common"].share == found["common"].spread == found["input_only"].share == 0


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, ("common", "input_only", "prototype_only")),
        ({"beta": 0}, ("common", "input_only", "prototype_only")),
        ({"beta": 0, "fixed": ("beta",)}, ("common", "input_only")),
        ({"alpha": 0, "beta": 0.5, "fixed": ("alpha", "beta")}, ("common", "prototype_only")),
        ({"theta": 0, "fixed": ("theta",)}, ("input_only", "prototype_only")),
        ({"model": "ratio", "alpha": 0, "fixed": ("alpha",)}, ("common", "prototype_only")),
    ],
)
def test_a_weight_that_is_fixed_at_0_leaves_its_part_out(options: dict[str, object], used: tuple[str, ...]) -> None:
    assert used_parts(head_with([[1, 0], [0, 1]], **options)) == used


def _approx(part: PartSize) -> PartSize:
    return PartSize(*(pytest.approx(value, rel=1e-5) for value in (part.size, part.spread, part.share)))
