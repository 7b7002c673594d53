"""Where in an image a logit comes from: its map over the picture, and outlines that work in grey."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tnn_runtime.drawing.colours import scale

__all__ = ["NOTABLE", "framed", "legend", "overlay", "rgb", "shown_at"]

_OPACITY = 0.5
"""Of a map over a picture."""

_STRONGEST = 0.1
"""Which share of the places is outlined."""

NOTABLE = 0.2
"""What speaks for or against is outlined, and told, where it is at least this share of the strongest place."""

_DASH = 6


def rgb(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """Return a picture in RGB."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    return picture.convert("RGB")


def shown_at(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side is ``side`` pixels; a small one shows each of its own pixels."""
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)


def overlay(picture: Image.Image, values: NDArray[np.float32], side: int) -> Image.Image:
    """Return a picture in grey with a map over it, whose longer side is ``side`` pixels.

    Amber speaks for the class and blue against it; a solid line is around the strongest tenth of the places for it, and
    a dashed one around the strongest tenth against it.

    Args:
        picture: The picture, in RGB.
        values: The map, ``[h, w]``, which covers the picture.
        side: In pixels.
    """
    grey = shown_at(picture, side).convert("L")
    level = np.asarray(grey, np.float64)[:, :, None]
    colours = Image.fromarray(scale(values / (np.abs(values).max() or 1)))
    above = np.asarray(colours.resize(grey.size, Image.Resampling.NEAREST), np.float64)
    image = Image.fromarray(np.rint(_OPACITY * above + (1 - _OPACITY) * level).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    width = max(2, side // 120)
    for strong, is_dashed in ((_strongest(values), False), (_strongest(-values), True)):
        for line in _edges(strong, image.size):
            _line(pen, line, width, is_dashed)
    return image


def legend(width: int, height: int) -> Image.Image:
    """Return the scale from left, against, to right, for."""
    return Image.fromarray(np.tile(scale(np.linspace(-1, 1, width)), (height, 1, 1)))


def framed(picture: Image.Image, box: tuple[int, int, int, int] | None, side: int) -> Image.Image:
    """Return a picture whose longer side is ``side`` pixels, with a frame around a place in it.

    Args:
        picture: The picture, in RGB.
        box: The place, ``(top, left, bottom, right)`` in pixels of the picture; ``None`` for no frame.
        side: In pixels.
    """
    image = shown_at(picture, side)
    if box is not None:
        width = max(2, side // 60)
        ends = image.height, image.width, image.height, image.width
        edges = (round(edge * side / max(picture.size)) for edge in box)
        top, left, bottom, right = (
            min(max(edge, width), end - 1 - width) for edge, end in zip(edges, ends, strict=True)
        )
        pen = ImageDraw.Draw(image)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for one, other in pairwise(corners):
            _line(pen, (*one, *other), width, is_dashed=False)
    return image


def _strongest(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which places are among the strongest tenth, above 0, and notable."""
    count = math.ceil(_STRONGEST * values.size)
    least = np.sort(values, axis=None)[-count]
    return np.asarray((values >= least) & (values > 0) & (values >= NOTABLE * np.abs(values).max()))


def _edges(inside: NDArray[np.bool_], size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return the lines between places inside and outside, as ``(x, y, x, y)`` in an image of a size."""
    rows, columns = inside.shape
    xs = np.rint(np.linspace(0, size[0] - 1, columns + 1)).astype(int).tolist()
    ys = np.rint(np.linspace(0, size[1] - 1, rows + 1)).astype(int).tolist()
    padded = np.pad(inside, 1)
    across = [(xs[c], ys[r], xs[c + 1], ys[r]) for r, c in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()]
    down = [(xs[c], ys[r], xs[c], ys[r + 1]) for r, c in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()]
    return across + down


def _line(pen: ImageDraw.ImageDraw, line: tuple[int, int, int, int], width: int, is_dashed: bool) -> None:
    """Draw a black line on a broader white one, which is seen on any ground."""
    for colour, extra in (("white", 2), ("black", 0)):
        if not is_dashed or colour == "white":
            pen.line(line, colour, width + extra)
            continue
        start, end = np.array(line[:2]), np.array(line[2:])
        steps = max(1, round(float(np.abs(end - start).max()) / (_DASH * width)))
        points = start + (end - start) * np.linspace(0, 1, 2 * steps + 1)[:, None]
        for one, other in zip(points[:-1:2].tolist(), points[1::2].tolist(), strict=True):
            pen.line((*one, *other), colour, width)
