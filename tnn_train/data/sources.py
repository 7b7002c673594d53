"""Labelled images as a reader finds them, before they are split and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_runtime.errors import InputError
from tnn_runtime.images.preprocess import ImageSource, open_image
from tnn_runtime.images.reading import read_each
from tnn_runtime.text import printable

__all__ = ["Found", "Headers", "Labelled", "LazyImages", "read_headers", "usual_size"]

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
        paths: The file of each image; none if they are not in files of their own.
    """

    sources: Sequence[ImageSource]
    labels: NDArray[np.int64]
    paths: Sequence[Path] = ()

    def take(self, indices: NDArray[np.int64]) -> Labelled:
        """Return the images at these places, int64 ``[n]``."""
        sources = LazyImages(self.sources.__getitem__, indices.tolist())
        return Labelled(sources, self.labels[indices], [self.paths[index] for index in indices if self.paths])


@dataclass(frozen=True)
class Found:
    """A data set as a reader found it, split as far as it comes split.

    Args:
        splits: The sets by name: ``train``, and ``val`` and ``test`` if there are such.
        class_names: One name for each label.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width in pixels that suit the images.
        unusable: What is wrong with each file that is in no set because it cannot be used.
    """

    splits: dict[str, Labelled]
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    unusable: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Headers:
    """What the headers of image files say.

    Args:
        sizes: Width and height in pixels of each image.
        unusable: What is wrong with each file that is no usable image.
    """

    sizes: dict[Path, tuple[int, int]]
    unusable: dict[Path, str]


def read_headers(paths: Sequence[Path], name: str) -> Headers:
    """Read the header of each image, without decoding any.

    Args:
        paths: The image files.
        name: What to call them while they are read.
    """

    def size(index: int) -> tuple[int, int]:
        with open_image(paths[index]) as image:
            return image.size

    headers = Headers({}, {})
    results = tqdm(
        read_each(size, len(paths)), f"checking {printable(name)}", len(paths), unit="image", disable=None, delay=1
    )
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, InputError):
            headers.unusable[path] = str(result)
        else:
            headers.sizes[path] = result
    return headers


def usual_size(sizes: Iterable[tuple[int, int]]) -> int:
    """Return the median of the images' shorter sides in pixels, within 16 and 224; 16 if there are no images."""
    shorter = [min(size) for size in sizes] or [_SMALLEST_INPUT]
    return int(np.clip(np.median(shorter), _SMALLEST_INPUT, _LARGEST_INPUT))
