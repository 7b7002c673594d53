from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from forms import COVERING, head_with, random_head

from tnn_runtime import UsageError
from tnn_train.data.images import even_sample
from tnn_train.heads.tversky.analysis import analyse_head

IMAGES = np.array([[2, 0, 0, 0], [1, 0, 0, 0], [0, 3, 1, 0], [0, 1, 1, 0], [0, 2, 0, 0]], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1, 0])


def test_the_nearest_images_and_what_is_shared() -> None:
    head = head_with([[1, 0, 0, 1], [0, 1, 2, 0]], alpha=0, beta=0)
    found = analyse_head(head, IMAGES, LABELS, nearest=2)
    first, second = found.prototypes
    assert (first.nearest.tolist(), first.similarities.tolist()) == ([0, 1], [2, 1])
    assert (second.nearest.tolist(), second.similarities.tolist()) == ([2, 3], [5, 3])
    assert [(part.index, part.common, part.images) for part in first.features] == [(0, 1.5, 2)]
    assert [(part.index, part.common, part.images) for part in second.features] == [(1, 2, 2), (2, 2, 2)]
    assert (first.label, first.present, first.best_for, first.of_its_class) == (0, 2, 2, 2)
    assert (second.label, second.present, second.best_for, second.of_its_class) == (1, 2, 3, 2)
    assert (found.num_images, found.num_features, found.dead_prototypes) == (5, 4, ())


def test_only_the_largest_shares_are_named() -> None:
    head = head_with([[1, 2, 3, 4], [0, 0, 0, 0]])
    first, second = analyse_head(head, np.ones((3, 4)), np.zeros(3, np.int64), shared=2).prototypes
    assert [part.index for part in first.features] == [3, 2]
    assert second.features == ()


def test_a_prototype_that_is_never_the_best_is_dead() -> None:
    head = head_with([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0, 0]])
    found = analyse_head(head, IMAGES, LABELS)
    assert found.dead_prototypes == (2,)
    assert found.prototypes[2].of_its_class == 0
    assert found.duplicate_prototypes[0] == dataclasses.replace(found.duplicate_prototypes[0], first=1, second=2)


def test_many_prototypes_speak_for_the_class_with_the_largest_weight() -> None:
    head = head_with([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], num_prototypes=3, classes=2)
    assert head.linear is not None
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[-3.0, 0.1, 2], [1, 0.2, -1]]))
    assert [prototype.label for prototype in analyse_head(head, IMAGES, LABELS).prototypes] == [1, 1, 0]


def test_centrality_compares_feature_values_with_those_of_the_own_class() -> None:
    head = head_with([[1, 0], [0, 1]])
    images = np.array([[3, 1], [1, 0]], dtype=np.float32)
    found = analyse_head(head, images, np.array([0, 1]))
    expected = [3 / np.sqrt(10) - 1, 0 - 1 / np.sqrt(10)]
    np.testing.assert_allclose([prototype.centrality for prototype in found.prototypes], expected, atol=1e-6)
    assert found.centrality == pytest.approx(np.mean(expected))


def test_centrality_is_that_of_features_whatever_the_prototypes_are_kept_as() -> None:
    """The second dimension of the embedding is no feature: in feature space prototype and image are the same."""
    images, labels = np.array([[2, 5], [-2, 5]], dtype=np.float32), np.array([0, 1])
    for space, prototypes in (("embedding", [[1.0, 0], [-1, 0]]), ("feature", [[1.0, -1], [-1, 1]])):
        head = head_with(prototypes, [[1.0, 0]], size=2, opposites=1.0, prototype_space=space)
        assert [one.centrality for one in analyse_head(head, images, labels).prototypes] == pytest.approx([2, 2])


def test_several_prototypes_are_central_to_the_class_they_speak_for() -> None:
    head = head_with([[1, 0], [0, 1], [1, 1]], num_prototypes=3, classes=2)
    assert head.linear is not None
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 1]]))
    found = analyse_head(head, np.eye(2, dtype=np.float32), np.array([0, 1]))
    assert [prototype.centrality for prototype in found.prototypes] == pytest.approx([1, 1, 0])
    assert found.centrality == pytest.approx(2 / 3)


def test_a_class_without_images_or_without_others_has_no_centrality() -> None:
    head = head_with([[1, 0], [0, 1]])
    found = analyse_head(head, np.eye(2, dtype=np.float32), np.array([0, 0]))
    assert np.isnan([prototype.centrality for prototype in found.prototypes]).all()
    assert np.isnan(found.centrality)


def test_a_large_sample_is_looked_at_in_batches() -> None:
    head, _ = random_head(COVERING[0])
    x, labels = torch.randn(1100, head.in_features), np.arange(1100) % 4
    whole, half = analyse_head(head, x, labels), analyse_head(head, x[:550], labels[:550])
    other = analyse_head(head, x[550:], labels[550:])
    for name, part in whole.parts.items():
        assert part.size == pytest.approx((half.parts[name].size + other.parts[name].size) / 2)
    assert sum(prototype.best_for for prototype in whole.prototypes) == 1100


def test_every_form_of_the_head_can_be_looked_at() -> None:
    for config in COVERING:
        head, x = random_head(config)
        found = analyse_head(head, x, np.zeros(len(x), np.int64), nearest=100)
        assert sum(prototype.best_for for prototype in found.prototypes) == len(x)
        for prototype in found.prototypes:
            similarities = head.similarities(x)[:, prototype.index].detach().numpy()
            np.testing.assert_allclose(prototype.similarities, similarities[prototype.nearest], rtol=1e-4, atol=1e-5)
            assert sorted(prototype.nearest.tolist()) == list(range(len(x)))


def test_samples_are_spread_evenly() -> None:
    assert even_sample(3).tolist() == [0, 1, 2]
    assert even_sample(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(even_sample(60_000)) == 5000


@pytest.mark.parametrize(("images", "labels"), [(IMAGES, LABELS[:3]), (IMAGES[:0], LABELS[:0]), (IMAGES[0], LABELS)])
def test_what_does_not_fit_is_refused(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"got embeddings .* labels; expected \[N, D\] and N, from 1 on"):
        analyse_head(head_with([[1, 0, 0, 0]] * 2), images, labels)
