from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from forms import COVERING, each_form, random_head

from tnn_runtime import UsageError
from tnn_train import TverskyConfig, TverskyHead
from tnn_train.data.images import even_sample
from tnn_train.heads.tversky.analysis import analyse_head
from tnn_train.heads.tversky.parts import feature_parts


def head_with(prototypes: list[list[float]], bank: list[list[float]] | None = None, **options: object) -> TverskyHead:
    """Return a head whose features are the dimensions of the embedding, or those of ``bank``."""
    size = len(prototypes[0])
    rows = torch.eye(size) if bank is None else torch.tensor(bank)
    classes = int(options.pop("classes", len(prototypes)))  # type: ignore[call-overload]
    config = TverskyConfig(num_features=len(rows), **options)  # type: ignore[arg-type]
    head = TverskyHead(size, classes, config)
    with torch.no_grad():
        if head.feature_bank is not None:
            head.feature_bank.copy_(rows)
        head.prototypes.copy_(torch.tensor(prototypes))
    return head


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


def test_idle_features() -> None:
    """Feature 0 is everywhere, 1 in no image, 2 in no prototype."""
    images = np.array([[1, -1, 1, 1], [2, 0, 1, -1]], dtype=np.float32)
    for membership in ("hard", "sigmoid"):
        head = head_with([[1, 1, -1, 1], [1, 1, 0, -2]], membership=membership)
        found = analyse_head(head, images, np.array([0, 1]))
        assert found.idle.everywhere == (0,)
        assert found.idle.in_no_image == (1,)
        assert found.idle.in_no_prototype == (2,)


def test_a_prototype_that_is_never_the_best_is_dead() -> None:
    head = head_with([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0, 0]])
    found = analyse_head(head, IMAGES, LABELS)
    assert found.dead_prototypes == (2,)
    assert found.prototypes[2].of_its_class == 0
    assert found.duplicate_prototypes[0] == dataclasses.replace(found.duplicate_prototypes[0], first=1, second=2)


def test_duplicates_have_a_cosine_from_the_threshold_on() -> None:
    bank = [[1.0, 0, 0], [2, 0, 0], [-1, 0, 0], [0, 1, 0.1]]
    # Only what is above 0 is salient, so that prototypes 0 and 2 have the same direction.
    head = head_with([[1, 1, 0], [0, 1, 0], [4, 4, 0]], bank)
    found = analyse_head(head, np.ones((2, 3)), np.zeros(2, np.int64))
    assert [(pair.first, pair.second) for pair in found.duplicate_features] == [(0, 1)]
    assert found.duplicate_features[0].cosine == pytest.approx(1)
    assert [(pair.first, pair.second) for pair in found.duplicate_prototypes] == [(0, 2)]
    loose = analyse_head(head, np.ones((2, 3)), np.zeros(2, np.int64), threshold=0.1)
    assert (loose.duplicate_prototypes[0].first, loose.duplicate_prototypes[0].second) == (0, 2)
    assert len(loose.duplicate_prototypes) == 3
    assert loose.threshold == 0.1


def test_a_diagonal_bank_has_no_duplicate_features() -> None:
    head = head_with([[1, 0, 0, 0], [0, 1, 0, 0]], feature_bank="diagonal")
    assert analyse_head(head, IMAGES, LABELS).duplicate_features == ()


def test_many_prototypes_speak_for_the_class_with_the_largest_weight() -> None:
    head = head_with([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], num_prototypes=3, classes=2)
    assert head.linear is not None
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[-3.0, 0.1, 2], [1, 0.2, -1]]))
    assert [prototype.label for prototype in analyse_head(head, IMAGES, LABELS).prototypes] == [1, 1, 0]


@each_form()
def test_the_terms_of_the_features_add_up_to_the_measures(config: TverskyConfig) -> None:
    head, x = random_head(config)
    with torch.no_grad():
        a, b = head.project(x), head.prototype_values
        for terms, whole in zip(feature_parts(head, a, b), head.parts(a, b), strict=True):
            torch.testing.assert_close(terms.sum(0), whole, rtol=1e-4, atol=1e-4)


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
