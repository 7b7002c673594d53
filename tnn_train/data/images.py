"""A data set in three parts, ready for training: labelled images and the preprocessing they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tnn_runtime.images.preprocess import ImageSource, Preprocessing
from tnn_runtime.images.reading import even_sample
from tnn_train.data.config import DataConfig
from tnn_train.data.sources import LazyImages

__all__ = ["ImageData", "ImageSet", "even_sample"]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split; an item is (uint8 ``[H, W, C]``, label).

    Args:
        sources: The images as they were found.
        labels: Class indices, int64 ``[N]``.
        preprocessing: How a source becomes an array.
        pixels: The decoded images ``[N, H, W, C]``; without them, sources are decoded when they are needed.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        pixels: NDArray[np.uint8] | None = None,
    ) -> None:
        self.sources = sources
        self.labels = labels
        self.preprocessing = preprocessing
        self.pixels = pixels

    @property
    def is_in_memory(self) -> bool:
        """Whether no image has to be decoded any more."""
        return self.pixels is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(self.decoded(index)), int(self.labels[index])

    def decoded(self, index: int) -> NDArray[np.uint8]:
        """Return one image as the model sees it, uint8 ``[H, W, C]``.

        Raises:
            InputError: If the image cannot be decoded.
        """
        return self.preprocessing(self.sources[index]) if self.pixels is None else self.pixels[index]

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        """Return the images at these places, int64 ``[n]``."""
        sources = LazyImages(self.sources.__getitem__, indices.tolist())
        pixels = None if self.pixels is None else self.pixels[indices]
        return ImageSet(sources, self.labels[indices], self.preprocessing, pixels)

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return up to ``count`` images spread evenly over the set, uint8 ``[n, H, W, C]``."""
        return np.stack([self.decoded(index) for index in even_sample(len(self), count).tolist()])


@dataclass(frozen=True)
class ImageData:
    """A data set, split: nothing of ``test`` may influence training or the choice of the epoch.

    Args:
        name: The data set's name, or the folder.
        train: Training images.
        val: Validation images.
        test: Test images.
        class_names: One name for each label.
        preprocessing: What turns an image file into a model input.
        config: What `tnn_train.load_data` was asked for.
        unusable: What is wrong with each file that was left out because it cannot be used.
        normalization: Where mean and deviation of the preprocessing come from, for people to read.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    config: DataConfig
    unusable: Mapping[Path, str] = field(default_factory=dict)
    normalization: str = ""

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...], origin: str = "given") -> ImageData:
        """Return the same images, to be normalised with other statistics: those that pretrained weights expect.

        Args:
            mean: One value a channel, in the unit of ``pixel / 255``.
            std: One positive value a channel, in the same unit.
            origin: Where they come from, for people to read.

        Raises:
            ArtifactError: If there is not one usable value for each channel.
        """
        preprocessing = dataclasses.replace(self.preprocessing, mean=tuple(mean), std=tuple(std))
        train, val, test = (
            ImageSet(images.sources, images.labels, preprocessing, images.pixels)
            for images in (self.train, self.val, self.test)
        )
        return dataclasses.replace(
            self, train=train, val=val, test=test, preprocessing=preprocessing, normalization=origin
        )
