"""Heads of learning vector quantisation without features and prototypes, and with one more class."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lvq_forms import CLASSES, each_form, random_head

from tnn_runtime import UsageError
from tnn_train import LvqConfig


@each_form
def test_a_head_without_a_prototype_has_the_logits_of_the_others(config: LvqConfig) -> None:
    head, x = random_head(dataclasses.replace(config, owners=(0, 0, 1, 2, 2, 3), has_centre=config.has_centre))
    found = head.without([], [1, 3])
    with torch.no_grad():
        others = [0, 1, 2, 3]
        torch.testing.assert_close(found.distances(x), head.distances(x)[:, [0, 2, 4, 5]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found(x)[:, [1, 3]], head(x)[:, [1, 3]], rtol=1e-4, atol=1e-4)
    assert found.options.owners == (0, 1, 2, 3)
    assert found.num_prototypes == len(others)
    again = type(found)(found.in_features, CLASSES, found.options)
    again.load_state_dict(found.state_dict())
    torch.testing.assert_close(again(x), found(x))


@each_form
def test_a_head_without_features_sees_those_of_the_centre(config: LvqConfig) -> None:
    head, x = random_head(dataclasses.replace(config, dropped=()))
    found = head.without([1], [])
    assert found.options.dropped == (1,)
    with torch.no_grad():
        centre, values = head.centre, head.latent(x).clone()
        values[:, 1] = centre[1]
        head.network = None
        torch.testing.assert_close(found(x), head(values), rtol=1e-4, atol=1e-4)


@each_form
def test_a_new_class_has_its_prototype_at_its_mean_and_leaves_the_others_alone(config: LvqConfig) -> None:
    head, x = random_head(config)
    for place in (0, 2, CLASSES):
        found = head.with_class(x[:3], x[3:], place)
        with torch.no_grad():
            before, after = head(x), found(x)
            others = [label for label in range(CLASSES + 1) if label != place]
            torch.testing.assert_close(after[:, others], before, rtol=1e-4, atol=1e-4)
            new = found.owners.tolist().index(place)
            torch.testing.assert_close(found.prototypes[new], head.latent(x[:3]).mean(0))
        assert found.owners.tolist().count(place) == 1


def test_what_cannot_be_left_out_is_told() -> None:
    head, _ = random_head(LvqConfig())
    with pytest.raises(UsageError, match="prototype 1 is the only one of its class, which nothing could be without"):
        head.without([], [1])
    head, _ = random_head(LvqConfig(prototypes=2))
    with pytest.raises(UsageError, match="prototype 2 is one of those of its class.*leave one of them in"):
        head.without([], [2, 3])
    with pytest.raises(UsageError, match="all 6 features are left out"):
        head.without(range(6), [])
    with pytest.raises(UsageError, match="feature 3 is left out already"):
        head.without([3], []).without([1, 3], [])
    with pytest.raises(UsageError, match="the features of an lvq head have no names"):
        head.renamed({0: "stripes"})
