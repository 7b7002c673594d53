from __future__ import annotations

import pytest
import torch
from forms import head_with

from tnn_train import TverskyHead
from tnn_train.heads.tversky.idle import IdleFeatures, duplicate_features, duplicates, idle_features

IMAGES = torch.tensor([[1.0, -1, 1, 1], [2, 0, 1, -1]])


def idle(head: TverskyHead, x: torch.Tensor) -> IdleFeatures:
    with torch.no_grad():
        return idle_features(head, head.project(x), head.prototype_values)


def pairs(head: TverskyHead, length: float = 1.0, threshold: float = 0.99) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in duplicate_features(head, length, threshold)]


@pytest.mark.parametrize("membership", ["hard", "sigmoid"])
def test_features_that_tell_nothing_apart(membership: str) -> None:
    """Feature 0 is everywhere, 1 in no image, 2 in no prototype."""
    head = head_with([[1, 1, -1, 1], [1, 1, 0, -2]], membership=membership)
    assert idle(head, IMAGES) == IdleFeatures((1,), (2,), (0,))


def test_a_feature_and_its_opposite_are_listed_once() -> None:
    """Feature 0 is everywhere, its opposite 4 nowhere; no image has 1, which one prototype has; both have 3 and 7."""
    head = head_with([[1, 1, -1, 1], [1, -1, 1, -2]], opposites=0.5)
    assert idle(head, IMAGES) == IdleFeatures((1, 6), (), (0,))


def test_an_opposite_may_be_everywhere() -> None:
    head = head_with([[-1, 1], [-2, -1]], opposites=1.0)
    assert idle(head, torch.tensor([[-1.0, 1], [-1, -1]])) == IdleFeatures((), (), (2,))


def test_prototypes_that_are_feature_values_can_lack_a_feature_and_its_opposite() -> None:
    head = head_with(
        [[-1, 1, -1, -1], [-1, -1, -1, 1]], [[1.0, 0], [0, 1]], opposites=1.0, prototype_space="feature", size=2
    )
    assert idle(head, torch.tensor([[1.0, 1], [-1, -1]])) == IdleFeatures((), (0, 2), ())


def test_rows_coincide_from_the_threshold_on() -> None:
    rows = torch.tensor([[1.0, 1, 0], [0, 1, 0], [4, 4, 0]])
    assert [(pair.first, pair.second) for pair in duplicates(rows, 0.99)] == [(0, 2)]
    assert duplicates(rows, 0.99)[0].cosine == pytest.approx(1)
    loose = duplicates(rows, 0.1)
    assert (loose[0].first, loose[0].second, len(loose)) == (0, 2, 3)


def test_features_coincide_where_their_rows_have_the_same_direction() -> None:
    bank = [[1.0, 0, 0], [2, 0, 0], [-1, 0, 0], [0, 1, 0.1]]
    assert pairs(head_with([[1, 1, 0]] * 2, bank)) == [(0, 1)]


def test_a_feature_coincides_with_the_opposite_of_another_one_never_with_its_own() -> None:
    bank = [[1.0, 0, 0], [2, 0, 0], [-1, 0, 0], [0, 1, 0.1]]
    assert sorted(pairs(head_with([[1, 1, 0]] * 2, bank, opposites=1.0))) == [(0, 1), (0, 6), (1, 6)]


def test_features_with_other_thresholds_are_others() -> None:
    head = head_with([[1, 1]] * 2, [[1.0, 0], [1, 0]], thresholds=True)
    assert head.thresholds is not None
    assert pairs(head) == [(0, 1)]
    with torch.no_grad():
        head.thresholds[1] = 3
    assert pairs(head) == []
    assert pairs(head, length=100) == [(0, 1)]


def test_a_diagonal_bank_has_no_duplicate_features() -> None:
    assert pairs(head_with([[1, 0], [0, 1]], feature_bank="diagonal")) == []
