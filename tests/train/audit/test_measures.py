"""Measures on arrays: each against what it is by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tnn_train.audit.measures import MEASURES, SECTIONS, sections_of
from tnn_train.audit.prototypes import (
    activation_entropy,
    centrality,
    duplicate_share,
    margin_to_nearest,
    nearest_of_class,
    separation,
    typicality,
)
from tnn_train.audit.seeds import correlations, match, within_classes
from tnn_train.audit.shifts import shifted
from tnn_train.audit.sizes import entropy, gini, size
from tnn_train.fields import FieldError

# Two images of class 0 on either side of its axis, one of class 1, one of class 2 between them.
IMAGES = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 1.0]])
LABELS = np.array([0, 0, 1, 2])
HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("effects", "count", "bits", "index"),
    [
        ([4.0, 0.0, 0.0, 0.0], 1, 0.0, 0.75),
        ([2.0, -2.0, 2.0, 2.0], 4, 2.0, 0.0),
        ([1.0, -1.0, 0.0, 0.0], 2, 1.0, 0.5),
        ([10.0, 1.0, -1.0, 1.1], 2, None, None),
        ([0.0, 0.0], 0, 0.0, 0.0),
    ],
)
def test_sizes(effects: list[float], count: int, bits: float | None, index: float | None) -> None:
    assert size(np.array(effects)) == count
    if bits is not None:
        assert entropy(np.array(effects)) == pytest.approx(bits)
        assert gini(np.array(effects)) == pytest.approx(index)


def test_a_prototype_at_the_mean_of_its_class_is_central() -> None:
    prototypes, owners = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 5.0]]), np.array([0, 1])
    placed = IMAGES, LABELS, prototypes, owners
    assert centrality(*placed) == pytest.approx([HALF - (0 + 0.5) / 2, 1 - (0 + 0 + HALF) / 3])
    assert margin_to_nearest(*placed) == pytest.approx([HALF - 0.5, 1 - HALF])
    assert separation(prototypes, owners) == pytest.approx(1.0)


def test_typicality_compares_a_prototype_with_the_members_of_its_class() -> None:
    members = np.array([[1.0, 0.0], [0.8, 0.6]])
    found = typicality(members, np.array([0, 0]), np.array([[1.8, 0.6], [1.0, 0.0]]), np.array([0, 0]))
    assert found == pytest.approx([np.cos(np.arccos(0.8) / 2) / 0.8, 0.9 / 0.8])


@pytest.mark.parametrize("owner", [3, 7])
def test_a_class_without_images_has_no_centrality(owner: int) -> None:
    placed = IMAGES, LABELS, np.ones((1, 3)), np.array([owner])
    assert all(np.isnan(measure(*placed)).all() for measure in (centrality, margin_to_nearest, typicality))
    assert np.isnan(nearest_of_class(IMAGES[:, :1], LABELS, np.array([owner]))).all()


def test_the_nearest_images_are_counted_up_to_the_size_of_the_class() -> None:
    similarities = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, 2.0]])
    assert nearest_of_class(similarities, LABELS, np.array([0, 1])).tolist() == [0.5, 0.0]
    assert nearest_of_class(similarities, LABELS, np.array([0, 1]), 1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("vectors", "share"),
    [
        ([[1, 0], [2, 0], [0, 1]], 2 / 3),
        ([[1, 0], [-1, 0]], 0.0),
        ([[1, 0], [1, 0.01], [1, -0.01]], 1.0),
        ([[1, 0]], 0),
    ],
)
def test_duplicates_are_counted(vectors: list[list[float]], share: float) -> None:
    assert duplicate_share(np.array(vectors, float)) == pytest.approx(share)


def test_entropy_of_activations() -> None:
    similarities = np.column_stack([np.arange(10.0), np.full(10, 3.0), np.repeat([0.0, 1.0], 5)])
    assert activation_entropy(similarities) == pytest.approx([np.log2(10), 0.0, 1.0])


@pytest.mark.parametrize(("signed", "expected"), [(True, [0, 2, 1]), (False, [0, 2, 1])])
def test_profiles_are_paired_whatever_their_order_scale_and_shift(signed: bool, expected: list[int]) -> None:
    first = np.random.default_rng(0).normal(size=(50, 3))
    factors = np.array([1.0, 3.0, 0.5]) * (1 if signed else np.array([1, -1, 1]))
    second = (first * factors + 7.0)[:, expected]
    found = match(first, second, signed=signed)
    assert found.pairs.tolist() == [[0, 0], [1, 2], [2, 1]]
    assert found.correlations == pytest.approx([1, 1, 1])


def test_a_profile_that_is_the_same_everywhere_correlates_with_none() -> None:
    first = np.column_stack([np.full(20, 0.1), np.arange(20.0)])
    assert match(first, first).correlations == pytest.approx([0, 1])


def test_within_classes_nothing_is_left_of_what_classes_explain() -> None:
    profiles = np.column_stack([LABELS * 3.0, [1.0, 2.0, 5.0, 6.0]])
    assert within_classes(profiles, LABELS).T.tolist() == [[0, 0, 0, 0], [-0.5, 0.5, 0, 0]]
    assert correlations(*[within_classes(profiles, LABELS)] * 2) == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("shift", "expected"),
    [((1, 0), [[1, 2], [1, 2]]), ((-1, 0), [[3, 4], [3, 4]]), ((0, 1), [[1, 1], [3, 3]]), ((0, -1), [[2, 2], [4, 4]])],
)
def test_a_shift_repeats_the_border(shift: tuple[int, int], expected: list[list[int]]) -> None:
    image = np.array([[1, 2], [3, 4]], np.uint8)[None, :, :, None]
    assert shifted(image, *shift)[0, :, :, 0].tolist() == expected


def test_every_measure_belongs_to_a_section_and_says_what_it_is() -> None:
    assert {measure.section for measure in MEASURES.values()} == {*SECTIONS}
    assert all(measure.title and measure.definition for measure in MEASURES.values())
    assert sections_of(["seeds", "features", "seeds"]) == ("features", "seeds")


@pytest.mark.parametrize("name", ["feature", "Seeds", ""])
def test_an_unknown_section_is_refused(name: str) -> None:
    with pytest.raises(FieldError, match="unknown --measures .*choose from features"):
        sections_of(["features", name])
