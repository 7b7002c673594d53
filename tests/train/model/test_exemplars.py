"""Exemplars: which training images they are, where in these a feature lies, and what they may take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toy.map_head import BestPlaceHead

from tnn_runtime.explain.exemplars import Gallery
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LinearHead, TverskyConfig, TverskyHead
from tnn_train.model.exemplars import _threshold, find_exemplars
from tnn_train.model.image_model import ImageModel

SIDE, CELL = 40, 10
NAMES = ("red", "green", "blue")
PREPROCESSING = Preprocessing(SIDE, SIDE, 3, (0.0,) * 3, (1.0,) * 3)
MEANS = nn.Sequential(nn.AvgPool2d(CELL), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""A backbone whose embedding is the mean of each colour, and its map that of each cell."""


def squares(count: int = 30) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return black images with one square in the colour of their class, their classes, and the cell of each square."""
    rng = np.random.default_rng(0)
    labels, cells = np.arange(count) % 3, rng.integers(0, SIDE // CELL, (count, 2))
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for image, label, (row, column), level in zip(images, labels, cells, rng.permutation(count), strict=True):
        image[row * CELL :, column * CELL :, label][:CELL, :CELL] = 100 + 5 * level
    return images, labels, cells


def found_in(images: NDArray[np.uint8], labels: NDArray[np.int64], model: ImageModel, **more: int) -> Gallery:
    found = find_exemplars(model.eval(), PREPROCESSING, images.__getitem__, labels, NAMES, **more)
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_exemplars_of_features_are_the_images_that_have_them_most_with_the_place(count: int) -> None:
    images, labels, cells = squares()
    gallery = found_in(images, labels, ImageModel(MEANS, LinearHead(3, 3)), count=count)
    level = images.max((1, 2, 3)).astype(int)
    for colour, name in enumerate(NAMES):
        best = sorted(np.flatnonzero(labels == colour), key=lambda place: -level[place])[:count]
        one = gallery.find("feature", colour)
        assert one is not None
        assert one.labels == (name,) * len(best)
        np.testing.assert_array_equal(one.images, images[best])
        np.testing.assert_allclose(one.values, level[best] / 255 / 16, rtol=1e-5)
        assert one.shares == {other: float(other == name) for other in NAMES}
        assert one.description == f"Seen in 100% of “{name}” and 0% of all others"
        assert one.boxes == tuple(
            (row * CELL, column * CELL, row * CELL + CELL, column * CELL + CELL) for row, column in cells[best].tolist()
        )


def test_a_feature_that_no_image_has_shows_none() -> None:
    images, labels, _ = squares()
    images[..., 2] = 0
    blue = found_in(images, labels, ImageModel(MEANS, LinearHead(3, 3))).find("feature", 2)
    assert blue is not None
    assert (len(blue.images), blue.labels, blue.values, blue.boxes) == (0, (), (), ())
    assert set(blue.shares.values()) == {0.0}
    dark = np.zeros_like(images)
    model = ImageModel(MEANS, LinearHead(3, 3)).eval()
    assert find_exemplars(model, PREPROCESSING, dark.__getitem__, labels, NAMES) is None


@pytest.mark.parametrize("num_prototypes", [None, 5])
def test_exemplars_of_prototypes_are_the_images_most_like_them(num_prototypes: int | None) -> None:
    images, labels, _ = squares()
    config = TverskyConfig(num_features=8, num_prototypes=num_prototypes)
    torch.manual_seed(0)
    head = TverskyHead(3, 3, config)
    gallery = found_in(images, labels, ImageModel(MEANS, head))
    with torch.no_grad():
        x = MEANS(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        similar = head.similarities(x).numpy()
    assert gallery.prototypes is not None
    for number in range(similar.shape[1]):
        one = gallery.find("prototype", number)
        assert one is not None
        best = np.argsort(-similar[:, number], kind="stable")[:4]
        np.testing.assert_allclose(one.values, similar[best, number], atol=1e-5)
        nearest = similar.argmax(1) == number
        assert one.shares == pytest.approx(
            dict(zip(NAMES, (nearest[labels == k].mean() for k in range(3)), strict=True))
        )
        assert one.boxes is not None


@pytest.mark.parametrize(
    ("most_bytes", "sides", "pictures", "features"),
    [
        (10**9, 64, 4, 6),
        (6 * 4 * 48 * 48 * 3, 48, 4, 6),
        (6 * 4 * 32 * 32 * 3, 32, 4, 6),
        (6 * 3 * 32 * 32 * 3, 32, 3, 6),
        (6 * 32 * 32 * 3, 32, 1, 6),
        (4 * 32 * 32 * 3, 32, 1, 4),
    ],
)
def test_pictures_fit_into_what_they_may_take(
    most_bytes: int, sides: int, pictures: int, features: int, caplog: pytest.LogCaptureFixture
) -> None:
    side, count = 80, 24
    images = np.stack([np.full((side, side, 3), 255 - place, np.uint8) for place in range(count)])
    values = torch.zeros(count, 6)
    for place in range(count):
        values[place, place % 6] = 1 - place / 100
    model = ImageModel(Planted(values), LinearHead(6, 3)).eval()
    labels = np.arange(count) % 3
    preprocessing = Preprocessing(side, side, 3, (0.0,) * 3, (1.0,) * 3)
    found = find_exemplars(model, preprocessing, images.__getitem__, labels, NAMES, 4, most_bytes)
    assert found is not None
    assert found.pictures.nbytes <= most_bytes
    assert found.pictures.shape[1:] == (sides, sides, 3)
    assert found.features.pictures.shape == (features, pictures)
    told = f"{6 - features} of 6 features and prototypes have no exemplars, as their pictures would take more than"
    assert (told in caplog.text) == (features < 6)


class Planted(nn.Module):
    """A backbone that knows each image by its brightest value, and gives it the embedding that was planted."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x: Tensor) -> Tensor:
        return self.values[(255 - 255 * x.amax((1, 2, 3))).round().long()]


def test_backbones_without_maps_tell_no_places() -> None:
    images, labels, _ = squares()
    for backbone in (nn.Sequential(MEANS, nn.Linear(3, 3)), nn.Sequential(nn.AvgPool2d(SIDE), MEANS[1:])):
        assert found_in(images, labels, ImageModel(backbone, LinearHead(3, 3))).features.boxes is None


def test_heads_that_take_a_map_have_none() -> None:
    images, labels, _ = squares()
    model = ImageModel(nn.AvgPool2d(CELL), BestPlaceHead(3, 3)).eval()
    assert find_exemplars(model, PREPROCESSING, images.__getitem__, labels, NAMES) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_splits_values_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 300), rng.normal(rng.uniform(3, 9), 1, rng.integers(20, 300))])
    values = values.astype(np.float32)
    edges = np.linspace(values.min(), values.max(), 65)[1:-1]

    def between(edge: float) -> float:
        below, above = values[values <= edge], values[values > edge]
        return len(below) * len(above) * (above.mean() - below.mean()) ** 2 if len(below) and len(above) else 0.0

    assert between(_threshold(values)) == pytest.approx(max(map(between, edges)), rel=0.02)
    assert _threshold(np.ones(5, np.float32)) == 1


class Turned(LinearHead):
    """A head with prototypes whose features are below 0 for every image."""

    def feature_values(self, x: Tensor) -> Tensor:
        return -1 - x

    def similarities(self, x: Tensor) -> Tensor:
        return x


def test_prototypes_have_exemplars_where_features_have_none() -> None:
    images, labels, _ = squares()
    gallery = found_in(images, labels, ImageModel(MEANS, Turned(3, 3)))
    for number in range(3):
        feature, prototype = gallery.find("feature", number), gallery.find("prototype", number)
        assert feature is not None
        assert prototype is not None
        assert (len(feature.images), len(prototype.images)) == (0, 4)


def test_prototypes_may_leave_no_room_for_features() -> None:
    images, labels, _ = squares()
    gallery = found_in(images, labels, ImageModel(MEANS, Turned(3, 3)), most_bytes=2 * 32 * 32 * 3)
    assert len(gallery.pictures) == len(gallery.prototypes.numbers if gallery.prototypes else ()) == 2
    assert len(gallery.features.numbers) == 0
    assert gallery.told("feature") == "those of no feature"


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.2e-7, 1e-6])
@pytest.mark.parametrize("level", [0.0, 1e-42, 0.731, 3e38])
def test_features_that_hardly_vary_have_exemplars_too(level: float, spread: float) -> None:
    images, labels, _ = squares()

    class Steady(LinearHead):
        def feature_values(self, x: Tensor) -> Tensor:
            return torch.cat([x, level + spread * x[:, :1]], 1)

        def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
            return torch.cat([maps, level + spread * maps[:, :1]], 1)

    gallery = found_in(images, labels, ImageModel(MEANS, Steady(3, 3)))
    assert len(gallery.features.numbers) == 4
    assert np.isfinite(gallery.features.shares).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_give_a_note_and_no_exemplars(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels, _ = squares()

    class Broken(LinearHead):
        def feature_values(self, x: Tensor) -> Tensor:
            return x.masked_fill(x == x.max(), value)

    model = ImageModel(MEANS, Broken(3, 3)).eval()
    assert find_exemplars(model, PREPROCESSING, images.__getitem__, labels, NAMES) is None
    assert "the model gives no finite numbers" in caplog.text
