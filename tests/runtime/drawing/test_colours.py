"""Colours and maps that everybody can read: equal steps, rising lightness, outlines in grey."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tnn_runtime.drawing.colours import _LMS, _RGB, AGAINST, FOR, scale
from tnn_runtime.drawing.heat import framed, overlay, rgb

SEEN = {
    "trichromacy": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
"""What eyes see of linear sRGB (Machado, Oliveira and Fernandes, 2009, at full severity)."""


def lab(colours: NDArray[np.uint8], eyes: str = "trichromacy") -> NDArray[np.float64]:
    """Return colours, as some eyes see them, in OKLab."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ SEEN[eyes].T, 0, 1)
    return np.cbrt(seen @ np.linalg.inv(_RGB).T) @ np.linalg.inv(_LMS).T


def test_equal_steps_of_the_scale_look_equally_large() -> None:
    values = np.linspace(-1, 1, 11)
    steps = np.linalg.norm(np.diff(lab(scale(values)), axis=0), axis=1)
    for half in (steps[:5], steps[5:]):
        assert half.max() < 1.15 * half.min()


@pytest.mark.parametrize("eyes", SEEN)
def test_the_scale_is_read_by_all_eyes(eyes: str) -> None:
    seen = lab(scale(np.linspace(-1, 1, 21)), eyes)
    assert (np.diff(seen[:, 0]) > 0).all()
    assert np.linalg.norm(seen[-1] - seen[0]) > 0.3
    assert np.linalg.norm(seen[-1] - seen[10]) > 0.15 < np.linalg.norm(seen[10] - seen[0])


@pytest.mark.parametrize("eyes", ["trichromacy", "deuteranopia", "protanopia"])
def test_bars_for_and_against_differ(eyes: str) -> None:
    colours = np.array([[int(text[place : place + 2], 16) for place in (1, 3, 5)] for text in (FOR, AGAINST)], np.uint8)
    assert np.linalg.norm(np.subtract(*lab(colours, eyes))) > 0.2


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (7, 7), (14, 3)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_the_strongest_places_are_outlined_in_grey(size: tuple[int, int], level: int) -> None:
    values = np.zeros(size, np.float32)
    values[0, 0] = 2
    picture = Image.new("RGB", (16, 16), (level,) * 3)
    grey = np.asarray(overlay(picture, values, 280).convert("L"))
    height, width = 280 // size[0], 280 // size[1]
    edge = grey[2 : height - 4, width - 4 : width + 4] if size[1] > 1 else grey[2:-4, :6]
    assert edge.max() == 255
    assert edge.min() == 0


def test_what_speaks_against_has_a_dashed_line() -> None:
    values, picture = np.zeros((4, 4), np.float32), Image.new("RGB", (16, 16))
    values[2, 2] = 1
    solid, dashed = (np.asarray(overlay(picture, sign * values, 280).convert("L")) for sign in (1, -1))
    lines = [(image[150:200, 136:144] == 0).any(1).mean() for image in (solid, dashed)]
    assert lines[0] == 1.0
    assert 0.3 < lines[1] < 0.8


@pytest.mark.parametrize("values", [np.zeros((3, 3), np.float32), np.full((2, 2), -1e-30, np.float32)])
def test_a_map_of_nothing_is_drawn(values: NDArray[np.float32]) -> None:
    assert overlay(Image.new("RGB", (8, 8)), values, 64).size == (64, 64)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 1), np.uint8),
        np.zeros((4, 6, 3), np.uint8),
        Image.new("L", (6, 4)),
        Image.new("RGBA", (6, 4)),
        Image.new("I;16", (6, 4)),
    ],
)
def test_pictures_of_any_kind(picture: Image.Image | NDArray[np.uint8]) -> None:
    found = rgb(picture)
    assert (found.mode, found.size) == ("RGB", (6, 4))


def test_a_frame_is_where_the_feature_is() -> None:
    drawn = np.asarray(framed(Image.new("RGB", (8, 8), "grey"), (1, 2, 5, 6), 80).convert("L")).astype(int)
    rows, columns = np.nonzero(np.abs(drawn - 128) > 60)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((10, 50, 20, 60), abs=3)
