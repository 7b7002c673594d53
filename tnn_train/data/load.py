"""From a data set's name or an image folder to three stratified sets of uint8 images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torchvision
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import WHITE, Colour, Preprocessing
from tnn_train.data.config import DataConfig
from tnn_train.data.folder import read_folder
from tnn_train.data.images import ImageData
from tnn_train.data.nabirds import read_nabirds
from tnn_train.data.readers import read_digits, read_fake, torchvision_reader
from tnn_train.data.sets import read_sets
from tnn_train.data.sources import Found
from tnn_train.errors import DataError
from tnn_train.fields import Field, FieldError, repeated
from tnn_train.statistics import IMAGENET, Statistics

__all__ = ["DATASETS", "folder_of", "load_data"]

_logger = logging.getLogger(__name__)

DATASETS: dict[str, Callable[[DataConfig], Found]] = {
    "digits": read_digits,
    "mnist": torchvision_reader(torchvision.datasets.MNIST, channels=1, image_size=28),
    "fashion-mnist": torchvision_reader(torchvision.datasets.FashionMNIST, channels=1, image_size=28),
    "cifar10": torchvision_reader(torchvision.datasets.CIFAR10, channels=3, image_size=32),
    "cifar100": torchvision_reader(torchvision.datasets.CIFAR100, channels=3, image_size=32),
    "nabirds": read_nabirds,
    "fake": read_fake,
}
"""The data sets by name, each with what reads it."""

CACHE_BYTES = 1 << 30
"""Decoded sets up to this size are kept in memory, decoded once before training starts."""

_WITH_BOXES = ("nabirds",)
_MEASURED_IMAGES = 2000
_SMALLEST_STD = 1e-3


def load_data(
    source: str | Path | DataConfig,
    *,
    root: str | Path = "data",
    image_size: int | tuple[int, ...] | None = None,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
    crop_to_boxes: bool = False,
    test_share: float | None = None,
    val_share: float | None = None,
    groups: str | Path | None = None,
    skip_unusable: bool = False,
    fit: str = "crop",
    background: Colour | None = WHITE,
    normalize: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    nested_classes: bool = False,
) -> ImageData:
    """Load a data set and split it; the same arguments give the same split.

    Splits that the data set does not come with are cut off its training set, stratified by class, with at least one
    image of each class in each set where there are enough. Every image is decoded once; those that are in two sets,
    pixel for pixel, are listed in a note.

    Args:
        source: A key of `DATASETS`, a folder of images, or a configuration, which carries all the other options.
        root: As in `DataConfig`, and so are the others.
        image_size: Height and width of the model's input in pixels, one number if they are equal.
        limit: Use at most so many images of the training and validation set together, and of the test set.
        seed: Decides the splits and the subset.
        download: Whether torchvision may download what is not on disk.
        crop_to_boxes: Whether images are cropped to bounding boxes.
        test_share: The share of the images to test on, if they come without a test set; a fifth if ``None``.
        val_share: The share of the same images to validate on, if they come without a validation set; a fifth of what
            is left of them for training if ``None``.
        groups: CSV file of images and the groups that are not to be divided among the sets.
        skip_unusable: Whether to go on without the files that cannot be used.
        fit: How an image gets to the input's size: ``"crop"``, ``"pad"`` or ``"squash"``.
        background: What transparent pixels are laid on, 0 to 255; ``None`` to drop the transparency.
        normalize: ``"imagenet"``, ``"dataset"``, or ``None`` for the data set's where no weights bring others.
        mean: Mean of the normalisation, in the unit of ``pixel / 255``, one value or one a channel.
        std: Deviation of the normalisation, likewise.
        nested_classes: Whether folders in folders are classes of their own, named by their paths.

    Raises:
        DataError: If the data is missing, empty, damaged, or too small to split, or a group would have to be divided.
        InputError: If files cannot be used; the message lists them with the reasons.
        UsageError: If the name is unknown or an argument out of its range.
    """
    name = source.source if isinstance(source, DataConfig) else str(source)
    config = DataConfig(
        name,
        str(root),
        image_size,
        limit,
        seed,
        download,
        crop_to_boxes,
        test_share,
        val_share,
        None if groups is None else str(groups),
        skip_unusable,
        fit,
        background,
        normalize,
        mean,
        std,
        nested_classes,
    )
    if isinstance(source, DataConfig):
        if config != DataConfig(name):
            raise UsageError("got a DataConfig and options beside it; put the options into the DataConfig")
        config = source
    found = _find(config)
    _check(name, found)
    channels = found.channels
    if channels == 1 and len(config.background or WHITE) > 1:
        raise FieldError(Field(DataConfig, "background"), " has 3 values; expected one value for grey images")
    asked = config.statistics(channels)
    plain = Preprocessing(
        *config.size(found.image_size),
        channels,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        fit=config.fit,
        background=config.background,
    )
    (train, val, test), unusable = read_sets(found, config, plain, CACHE_BYTES)
    data = ImageData(name, train, val, test, found.class_names, plain, config, unusable)
    if asked is None and config.normalize == "imagenet":
        asked = IMAGENET if channels == len(IMAGENET.mean) else IMAGENET.grey()
    statistics = asked or _measured(train.sample(_MEASURED_IMAGES))
    return data.normalized(statistics.mean, statistics.std, statistics.origin)


def folder_of(config: DataConfig) -> Path | None:
    """Return the folder that holds the images; ``None`` for a data set with a name."""
    is_folder = config.source and config.source not in DATASETS
    return Path(config.source) if is_folder else None


def _find(config: DataConfig) -> Found:
    name = config.source
    if config.crop_to_boxes and name not in _WITH_BOXES:
        raise UsageError(f"{name} has no bounding boxes to crop to; only {', '.join(_WITH_BOXES)} has")
    if name in DATASETS:
        if Path(name).is_dir() and Path(name).resolve() != Path(config.root, name).resolve():
            _logger.warning("%s is the data set of that name; for the folder %s, give ./%s", name, name, name)
        return DATASETS[name](config)
    if name and Path(name).is_dir():
        return read_folder(Path(name), nested=config.nested_classes)
    if name and Path(name).exists():
        raise UsageError(f"{name} is a file; expected a folder with one subfolder of images for each class")
    raise UsageError(
        f"unknown data {name!r}: no such folder, and no such data set; choose from {', '.join(DATASETS)} or give a "
        "folder of images"
    )


def _check(name: str, found: Found) -> None:
    classes = len(found.class_names)
    if classes < 2:
        raise DataError(f"{name} has {classes} classes; expected at least 2")
    if (twice := repeated(found.class_names)) is not None:
        raise DataError(f"{name} has two classes called {twice!r}; expected a name of its own for each")
    for part, images in found.splits.items():
        if len(images.sources) != len(images.labels):
            raise DataError(
                f"the {part} set of {name} has {len(images.sources)} images and {len(images.labels)} labels; expected "
                "one label for each image; get the data again"
            )
        strange = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
        if len(strange):
            raise DataError(
                f"image {strange[0]} of the {part} set of {name} has the label {images.labels[strange[0]]}; expected 0 "
                f"to {classes - 1}; get the data again"
            )


def _measured(images: NDArray[np.uint8]) -> Statistics:
    """Return mean and standard deviation of each channel, in the unit of pixel / 255."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = sum(np.bincount(image[..., channel].ravel(), minlength=256) for image in images)
        mean = np.average(levels, weights=counts)
        means.append(float(mean))
        deviations.append(max(float(np.sqrt(np.average((levels - mean) ** 2, weights=counts))), _SMALLEST_STD))
    return Statistics(tuple(means), tuple(deviations), "the training set's")
