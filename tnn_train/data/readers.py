"""Data sets that come with a library, or that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from tnn_train.data.config import DataConfig
from tnn_train.data.sources import Found, Labelled, LazyImages
from tnn_train.errors import DataError

__all__ = ["read_digits", "read_fake", "torchvision_reader"]

_FAKE_CLASSES = 10
_FAKE_IMAGES = {"train": 1000, "test": 200}
_FAKE_SIZE = 224


def read_digits(config: DataConfig) -> Found:
    """Return the 1,797 grey 8 x 8 digits of scikit-learn."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Found(
        {"train": Labelled(list(images), digits.target.astype(np.int64))},
        tuple(map(str, digits.target_names)),
        channels=1,
        image_size=16,
    )


def torchvision_reader(kind: Any, channels: int, image_size: int) -> Callable[[DataConfig], Found]:
    """Return a reader of a data set that torchvision finds on disk or downloads.

    Args:
        kind: The class of the data set, with ``data``, ``targets`` and ``classes``.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width of its images in pixels.
    """

    def read(config: DataConfig) -> Found:
        try:
            sets = {
                "train": kind(config.root, train=True, download=config.download),
                "test": kind(config.root, train=False, download=config.download),
            }
        # torchvision meets a damaged file with assertions and the errors of what it parses.
        except (RuntimeError, OSError, ValueError, AssertionError, LookupError, EOFError) as error:
            reason = " ".join(str(error).split()) or "not in its format"
            remedy = "pass --data-root FOLDER, or --download"
            if "not found" not in reason:
                remedy = "a file there is damaged or could not be downloaded; remove what is there and get it again"
            raise DataError(f"{kind.__name__} cannot be read under {config.root} ({reason}); {remedy}") from error
        splits = {
            name: Labelled(list(np.asarray(data.data)), np.asarray(data.targets, dtype=np.int64))
            for name, data in sets.items()
        }
        return Found(splits, tuple(sets["train"].classes), channels, image_size)

    return read


def read_fake(config: DataConfig) -> Found:
    """Return random RGB images for benchmarks: stripes whose direction and colour tell the class, in noise."""
    height, width = config.size(_FAKE_SIZE)
    splits = {}
    for stream, (name, count) in enumerate(_FAKE_IMAGES.items()):
        sources = LazyImages(_Stripes(height, width, config.seed, stream), range(count))
        splits[name] = Labelled(sources, np.arange(count) % _FAKE_CLASSES)
    return Found(splits, tuple(f"stripes {label}" for label in range(_FAKE_CLASSES)), channels=3, image_size=_FAKE_SIZE)


@dataclass(frozen=True)
class _Stripes:
    """Images by number, uint8 ``[height, width, 3]``; the last digit of the number is the class."""

    height: int
    width: int
    seed: int
    stream: int

    def __call__(self, number: int) -> NDArray[np.uint8]:
        random = np.random.default_rng([self.seed, self.stream, number])
        label = number % _FAKE_CLASSES
        angle = np.pi * label / _FAKE_CLASSES
        y, x = np.ogrid[0 : 1 : self.height * 1j, 0 : 1 : self.width * 1j]
        wave = np.sin(8 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 2 * np.pi))
        colour = np.cos(2 * np.pi * (label / _FAKE_CLASSES + np.arange(3) / 3))
        noise: NDArray[np.uint8] = random.integers(0, 100, (self.height, self.width, 3), dtype=np.uint8)
        noise += (78 + 50 * wave[..., None] + 25 * colour).astype(np.uint8)
        return noise
