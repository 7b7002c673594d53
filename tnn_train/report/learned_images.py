"""Learned images beside the training images that the backbone sees as most like them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tnn_train.heads import description
from tnn_train.heads.description import Card, Cards, Sample, Section, Text
from tnn_train.model.image_model import ImageModel

__all__ = ["LearnedImage", "draw", "learned_images_section", "look_at_images"]

_NEAREST = 4
_SIDE, _MARGIN, _LINE, _COLUMNS = 64, 6, 14, 2
_LIGHT, _INK, _SOFT = (255, 255, 255), (0, 0, 0), (110, 110, 110)


@dataclass(frozen=True)
class LearnedImage:
    """A learned image, and what is like it.

    Args:
        title: What it shows.
        pixels: uint8 ``[H, W, C]``.
        nearest: The training images whose embeddings are nearest to its own, the nearest first, as positions in the
            sample, int64 ``[n]``.
    """

    title: str
    pixels: NDArray[np.uint8]
    nearest: NDArray[np.int64]


@torch.no_grad()
def look_at_images(model: ImageModel, sample: Sample, nearest: int = _NEAREST) -> list[LearnedImage]:
    """Return the learned images of a model, on the CPU; none if it has none.

    Args:
        model: The trained model.
        sample: Training images.
        nearest: How many of them to name for each learned image.
    """
    if model.images is None:
        return []
    titles = model.head.image_titles(sample.class_names)
    embedded, pixels = model.images(model.backbone), model.images.pixels()
    others = sample.embeddings.flatten(1).cpu()
    found = []
    for name in [name for name in titles if name in embedded]:
        rows = embedded[name]
        shown = (255 * pixels[name]).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        order = torch.cdist(rows.flatten(1), others).argsort(dim=1, stable=True)[:, :nearest].numpy()
        found += [LearnedImage(*one) for one in zip(titles[name], shown, order, strict=True)]
    return found


def learned_images_section(found: Sequence[LearnedImage], sample: Sample) -> Section:
    """Return the section of a report on learned images.

    Args:
        found: What `look_at_images` returned.
        sample: The images that it was found with.
    """
    about = Text(
        "The prototypes and features of this head were learned as images. Each stands first, before the training "
        "images whose embeddings are nearest to its own, with their classes. A learned image shows what the backbone "
        "is to see, which need not look like anything to people."
    )
    names = sample.class_names
    cards = [
        Card(
            one.title.capitalize(),
            "",
            [
                description.Image(-1, ("learned",), pixels=one.pixels),
                *(description.Image(place, (names[sample.labels[place]],)) for place in one.nearest.tolist()),
            ],
        )
        for one in found
    ]
    return Section("Learned images", [about, Cards(cards)])


def draw(
    found: Sequence[LearnedImage], picture: Callable[[int], NDArray[np.uint8]], captions: Sequence[str]
) -> Image.Image:
    """Return a picture of all learned images, each before the nearest training images.

    Args:
        found: What `look_at_images` returned.
        picture: Returns an image of the sample, uint8 ``[H, W, C]``.
        captions: What stands below each image of the sample.
    """
    across = 1 + max(len(one.nearest) for one in found)
    width, height = across * (_SIDE + _MARGIN) + 4 * _MARGIN, _SIDE + 2 * _LINE + 2 * _MARGIN
    rows = -(-len(found) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * width, rows * height + _MARGIN), _LIGHT)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for number, one in enumerate(found):
        left, top = number // rows * width + _MARGIN, number % rows * height + _MARGIN
        pen.text((left, top), one.title, _INK, font)
        shown: Iterable[tuple[NDArray[np.uint8], str]] = [
            (one.pixels, "learned"),
            *((picture(place), captions[place]) for place in one.nearest.tolist()),
        ]
        for place, (pixels, caption) in enumerate(shown):
            x = left + place * (_SIDE + _MARGIN) + (2 * _MARGIN if place else 0)
            canvas.paste(_thumbnail(pixels), (x, top + _LINE))
            pen.text((x, top + _LINE + _SIDE), caption[:10], _SOFT, font)
    return canvas


def _thumbnail(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
