"""Where explanations come from: each map has the mean that it explains, and lies where the features lie."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from explanations import explainer_of, linear_explainer_of
from forms import CLASSES, SIZE, each_form, head_with, random_head
from torch import Tensor

from tnn_runtime import ArtifactError, Explanation
from tnn_runtime.explain.places import reliability, spread
from tnn_train import LinearHead, TverskyConfig, TverskyHead

HEIGHT, WIDTH = 2, 3


def maps_with(x: Tensor, size: float = 1.0) -> Tensor:
    """Return random maps ``[N, D, h, w]`` whose means over all places are ``x``."""
    generator = torch.Generator().manual_seed(1)
    maps = size * torch.randn(*x.shape, HEIGHT, WIDTH, generator=generator)
    return maps - maps.mean((2, 3), keepdim=True) + x[:, :, None, None]


def explained(head: TverskyHead | LinearHead, x: Tensor, maps: Tensor, folder: Path) -> list[list[Explanation]]:
    make = explainer_of if isinstance(head, TverskyHead) else linear_explainer_of
    with torch.no_grad():
        places, logits = head.feature_maps(maps, x).numpy(), head(x).numpy()
        return make(head, folder)(x.numpy(), logits, CLASSES, 4, maps=places)


def check_means(explanation: Explanation) -> None:
    """Check that the mean of each map is the value that it explains."""
    maps = explanation.maps
    assert maps is not None
    assert maps.logit.shape == (HEIGHT, WIDTH)
    assert {values.dtype for values in (maps.logit, maps.parts, maps.features)} == {np.dtype(np.float32)}
    bound = 1e-4 * float(1 + max(abs(maps.parts).max(), abs(maps.features).max(initial=0)))
    assert maps.logit.mean() == pytest.approx(explanation.logit - explanation.bias, abs=bound)
    for part, places in zip(explanation.parts, maps.parts, strict=True):
        assert places.mean() == pytest.approx(part.value, abs=bound)
    for feature, places in zip(explanation.features, maps.features, strict=True):
        assert places.mean() == pytest.approx(sum(part.signed for part in feature.parts), abs=bound)


@each_form()
def test_the_mean_of_each_map_is_what_it_explains(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    for row in explained(head, x, maps_with(x), tmp_path):
        for explanation in row:
            check_means(explanation)
            assert np.ptp(explanation.maps.parts[2]) < 1e-4


def test_a_linear_logit_is_the_sum_of_its_weights_times_the_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head, x = LinearHead(SIZE, CLASSES), torch.randn(6, SIZE)
    maps = maps_with(x)
    for number, row in enumerate(explained(head, x, maps, tmp_path)):
        for explanation in row:
            check_means(explanation)
            added = head.weight[explanation.index].detach()[:, None, None] * maps[number]
            np.testing.assert_allclose(explanation.maps.logit, added.sum(0), rtol=1e-4, atol=1e-5)
            for feature, places in zip(explanation.features, explanation.maps.features, strict=True):
                np.testing.assert_allclose(places, added[feature.index], rtol=1e-4, atol=1e-5)


def test_what_the_image_has_lies_where_it_is_and_what_it_lacks_lies_nowhere(tmp_path: Path) -> None:
    # The prototype of class 0 has the features 0 and 1, the image 0 and 2; each of these lies at one place.
    prototypes = [[1.0, 1.0, 0.0], *[[0.0, 0.0, 1.0]] * (CLASSES - 1)]
    head = head_with(prototypes, difference="ignorematch", alpha=0.5, beta=0.25)
    maps = torch.zeros(1, 3, HEIGHT, WIDTH)
    maps[0, 0, 0, 1], maps[0, 2, 1, 2] = 12.0, 6.0
    ((explanation, *_),) = explained(head, maps.mean((2, 3)), maps, tmp_path)
    assert explanation.index == 0
    common, input_only, prototype_only = explanation.maps.parts
    assert common.tolist() == [[0, 12, 0], [0, 0, 0]]
    assert input_only.tolist() == [[0, 0, 0], [0, 0, 3]]
    assert prototype_only.tolist() == [[0.25] * WIDTH] * HEIGHT
    np.testing.assert_allclose(explanation.maps.logit, common - input_only - prototype_only, atol=1e-6)
    assert [feature.index for feature in explanation.features] == [0, 2, 1]
    np.testing.assert_allclose(explanation.maps.features, [common, -input_only, -prototype_only], atol=1e-6)


@pytest.mark.parametrize("intersection", ["mean", "gmean", "max", "softmin"])
def test_a_feature_that_is_barely_there_is_not_blown_up(intersection: str, tmp_path: Path) -> None:
    # What the image shares jumps as the value crosses 0, so that a division by it would know no bound.
    head = head_with([[1.0], *[[0.5]] * (CLASSES - 1)], intersection=intersection, alpha=0.0, beta=0.0)
    for value in (1e-1, 1e-3, 1e-6):
        x = torch.full((1, 1), value)
        ((explanation, *_),) = explained(head, x, maps_with(x), tmp_path)
        check_means(explanation)
        assert np.abs(explanation.maps.parts[0]).max() <= 50 * max(abs(explanation.common), value)
    assert np.ptp(explanation.maps.parts[0]) < 1e-3


def test_proportions_fade_with_what_they_divide_by() -> None:
    maps = np.array([[[1.0, 3.0]], [[-1.0, 1.05]], [[-1.0, 1.0]], [[0.0, 0.0]]])
    values = maps.mean((1, 2))
    assert reliability(values, maps).tolist() == pytest.approx([1, (0.025 / 0.1025) ** 2, 0, 1])
    assert spread(np.ones((1, 4)), np.zeros((1, 4)), maps).tolist() == [[[4.0, 4.0]]]


def test_maps_go_everywhere_that_explanations_go(tmp_path: Path) -> None:
    head, x = random_head(TverskyConfig(6))
    ((explanation, *_), *_) = explained(head, x, maps_with(x), tmp_path)
    copy = pickle.loads(pickle.dumps(explanation))
    assert np.array_equal(copy.maps.features, explanation.maps.features)
    assert dataclasses.replace(explanation, label="other").maps is explanation.maps
    shown = json.loads(json.dumps(explanation.to_dict()))["maps"]
    np.testing.assert_allclose(shown["logit"], explanation.maps.logit)
    assert np.shape(shown["parts"]) == (3, HEIGHT, WIDTH)
    assert f"{HEIGHT}x{WIDTH} places, 3 parts and 4 features" in repr(explanation)


def test_without_maps_there_are_none(tmp_path: Path) -> None:
    head, x = random_head(TverskyConfig(6))
    with torch.no_grad():
        ((explanation, *_), *_) = explainer_of(head, tmp_path)(x.numpy(), head(x).numpy())
    assert explanation.maps is None
    assert explanation.to_dict()["maps"] is None


def test_maps_of_another_head_are_refused(tmp_path: Path) -> None:
    head, x = random_head(TverskyConfig(6))
    with torch.no_grad(), pytest.raises(ArtifactError, match="maps of 5 features, and its head has 6; export the bund"):
        explainer_of(head, tmp_path)(x.numpy(), head(x).numpy(), maps=np.zeros((6, 5, 2, 3), np.float32))
