"""Labelled images as a reader finds them, before they are split and decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_runtime.images.preprocess import ImageSource, open_image

__all__ = ["Found", "Labelled", "LazyImages", "check_headers", "usual_size"]

_SMALLEST_INPUT, _LARGEST_INPUT = 16, 224


class LazyImages(Sequence[ImageSource]):
    """A sequence whose images are made when they are asked for, and not kept.

    Args:
        make: From a number to an image.
        numbers: The number of each image of the sequence.
    """

    def __init__(self, make: Callable[[int], ImageSource], numbers: Sequence[int]) -> None:
        self._make = make
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ImageSource: ...
    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...
    def __getitem__(self, index: int | slice) -> ImageSource | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self._make, self._numbers[index])
        return self._make(self._numbers[index])


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Args:
        sources: The images as they were found.
        labels: Class indices, int64 ``[N]``.
    """

    sources: Sequence[ImageSource]
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> Labelled:
        """Return the images at these places, int64 ``[n]``."""
        return Labelled(LazyImages(self.sources.__getitem__, indices.tolist()), self.labels[indices])


@dataclass(frozen=True)
class Found:
    """A data set as a reader found it, split as far as it comes split.

    Args:
        splits: The sets by name: ``train``, and ``val`` and ``test`` if there are such.
        class_names: One name for each label.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width in pixels that suit the images.
    """

    splits: dict[str, Labelled]
    class_names: tuple[str, ...]
    channels: int
    image_size: int


def check_headers(paths: Sequence[Path], name: str) -> list[tuple[int, int]]:
    """Return width and height in pixels of each image, without decoding any.

    Args:
        paths: The image files.
        name: What to call them while they are checked.

    Raises:
        InputError: If a file is missing or no usable image.
    """
    sizes = []
    for path in tqdm(paths, desc=f"checking {name}", unit="image", disable=None, delay=1):
        with open_image(path) as image:
            sizes.append(image.size)
    return sizes


def usual_size(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the median of the images' shorter sides in pixels, within 16 and 224."""
    return int(np.clip(np.median([min(size) for size in sizes]), _SMALLEST_INPUT, _LARGEST_INPUT))
