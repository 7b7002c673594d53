"""The margin without pixels: by hand, and with a model whose margin is the sum over one corner."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LinearHead, ModelConfig
from tnn_train.audit import pixels
from tnn_train.audit.pixels import (
    REFERENCES,
    Margins,
    margin_maps,
    moved,
    need_maps,
    relevance_of,
    remove_pixels,
    strongest_pixels,
)
from tnn_train.audit.subject import Subject
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.image_model import ImageModel

SIDE = 8
HAS_CAPTUM = importlib.util.find_spec("captum") is not None


class Mean(nn.Module):
    """A map that is the image itself, pooled over 2x2 pixels, and its mean."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 2).mean((2, 3))


def subject(backbone: nn.Module | None = None) -> Subject:
    """Bright 2x2 squares at known places; class 0 has the brightness for it, class 1 against it."""
    head = LinearHead(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[64.0], [-64.0]]))
        head.bias.zero_()
    images = np.zeros((3, SIDE, SIDE, 1), np.uint8)
    for image, place in zip(images, (0, 2, 6), strict=True):
        image[place : place + 2, place : place + 2] = 255
    checkpoint = Checkpoint(
        ImageModel(backbone or Mean(), head).eval(),
        ModelConfig(head="linear", num_classes=2, in_channels=1),
        Preprocessing(SIDE, SIDE, 1, mean=(0.0,), std=(1.0,)),
        ("bright", "dark"),
        images,
    )
    return Subject(checkpoint, images, np.zeros(3, np.int64))


def test_the_map_of_the_margin_is_where_the_margin_comes_from() -> None:
    maps = margin_maps(subject())
    assert maps.shape == (3, SIDE // 2, SIDE // 2)
    assert [np.unravel_index(one.argmax(), one.shape) for one in maps] == [(0, 0), (1, 1), (3, 3)]
    assert maps.mean((1, 2)) == pytest.approx([2 * 64 * 4 / 64] * 3)


def test_the_margin_drops_by_what_the_removed_pixels_bore() -> None:
    margins = Margins(subject())
    removed = np.zeros((3, SIDE, SIDE), bool)
    removed[:, 0, 0] = True
    assert margins.drop(removed) == pytest.approx([2.0, 0.0, 0.0])
    assert margins.drop(~removed) == pytest.approx([6.0, 8.0, 8.0])


def test_the_strongest_pixels_beat_others_where_the_map_is_right() -> None:
    one = subject()
    relevance = relevance_of(margin_maps(one), SIDE, SIDE)
    found = remove_pixels(relevance, Margins(one).drop)
    assert found["win"] == found["scattered_win"] == 1
    assert found["drop"] > 2 * found["random_drop"]
    wrong = remove_pixels(-relevance, Margins(one).drop)
    assert wrong["drop"] == wrong["win"] == 0


@pytest.mark.parametrize(("share", "count"), [(0.1, 6), (0.001, 1), (1.0, 64)])
def test_as_many_pixels_are_chosen_in_each_image(share: float, count: int) -> None:
    relevance = np.random.default_rng(0).random((4, SIDE, SIDE), np.float32)
    chosen = strongest_pixels(relevance, share)
    assert (chosen.sum((1, 2)) == count).all()
    assert all(
        values[mask].min() >= values[~mask].max(initial=0) for values, mask in zip(relevance, chosen, strict=True)
    )


def test_moved_pixels_keep_their_shape_and_lie_elsewhere() -> None:
    chosen = np.zeros((5, SIDE, SIDE), bool)
    chosen[:, 1:3, 1:4] = True
    other = moved(chosen, np.random.default_rng(0))
    assert (other.sum((1, 2)) == 6).all()
    assert all((one != two).any() for one, two in zip(chosen, other, strict=True))
    assert all(sorted(one.sum(0)) == sorted(two.sum(0)) for one, two in zip(chosen, other, strict=True))


@pytest.mark.parametrize("backbone", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), nn.MaxPool2d(8)])
def test_a_backbone_without_maps_is_refused(backbone: nn.Module) -> None:
    with pytest.raises(UsageError, match="has no feature maps.*leave pixels out of --measures"):
        need_maps(subject(backbone).checkpoint.model)


@pytest.mark.skipif(not HAS_CAPTUM, reason="Captum is not installed")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFERENCES)
def test_references_find_what_bears_the_margin(name: str) -> None:
    margins = Margins(subject())
    found = margins.attribute(REFERENCES[name])
    assert found.shape == (3, SIDE, SIDE)
    if name != "saliency":  # The gradient is the same everywhere.
        assert remove_pixels(found, margins.drop)["win"] == 1


def test_the_extra_brings_captum() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("captum") for line in project["optional-dependencies"][pixels._EXTRA])
