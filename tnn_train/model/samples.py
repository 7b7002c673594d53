"""Folders of images for proofs, and for the checkpoints that exports prove themselves with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.hierarchy import levels_of
from tnn_runtime.errors import InputError
from tnn_runtime.images.files import listed
from tnn_runtime.images.folders import TRAIN, ImageFolder, match_names, read_image_folder
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.images.reading import even_sample, read_images, refuse_unusable

__all__ = ["open_folder", "read_all", "read_calibration", "read_held_out", "read_samples", "read_training"]

_logger = logging.getLogger(__name__)

_SAMPLES = 256


def open_folder(path: Path) -> ImageFolder:
    """Return how a folder of images is laid out.

    Raises:
        InputError: If there is no such folder, there is no file in it, or something in it can be neither read nor
            followed.
    """
    if not path.is_dir():
        raise InputError(f"{path} {'is a file' if path.exists() else 'does not exist'}; expected a folder of images")
    folder = read_image_folder(path)
    count = len(folder.files(*folder.parts)) + len(folder.unusable)
    if count == 0:
        raise InputError(f"{path} has no files; expected a folder of images")
    refuse_unusable(folder.unusable, count)
    return folder


def read_held_out(
    folder: ImageFolder, preprocessing: Preprocessing, class_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images of a folder that were not trained on: all but those of its training split.

    Args:
        folder: The folder; all of its images are taken if it has no other split.
        preprocessing: What turns an image file into an input.
        class_names: One name for each logit.

    Returns:
        Images, uint8 ``[n, H, W, C]``, and their classes, int64 ``[n]``, -1 where they are not known, which is noted.

    Raises:
        InputError: If files cannot be used; the message lists them.
    """
    folder = _named_alike(folder, class_names)
    files = _held_out(folder)
    labels, why = _labels(folder, files, class_names)
    if why:
        _logger.warning("no accuracy is compared on %d of %d images: %s", (labels < 0).sum(), len(files), why)
    return read_images([path for path, _ in files], preprocessing), labels


def read_samples(
    folder: ImageFolder, preprocessing: Preprocessing, class_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return up to 256 of the images that `read_held_out` returns, spread evenly, and their classes.

    Args:
        folder: The folder.
        preprocessing: What turns an image file into an input.
        class_names: One name for each logit.

    Returns:
        Images, uint8 ``[n, H, W, C]``, and their classes, int64 ``[n]``; of images whose class is not known only where
        there are no others, with ``None`` for the classes. Both is noted.

    Raises:
        InputError: If files cannot be used; the message lists them.
    """
    folder = _named_alike(folder, class_names)
    files = _held_out(folder)
    labels, why = _labels(folder, files, class_names)
    known = np.flatnonzero(labels >= 0)
    if why and len(known):
        _logger.warning("%d of %d images are left out: %s", len(files) - len(known), len(files), why)
    elif why:
        _logger.warning("exports will compare no accuracy: %s", why)
    usable = known if len(known) else np.arange(len(files))
    chosen = usable[even_sample(len(usable), _SAMPLES)]
    images = read_images([files[place][0] for place in chosen], preprocessing)
    return images, labels[chosen] if len(known) else None


def read_all(folder: ImageFolder, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return all images of a folder, whatever its folders are called, uint8 ``[n, H, W, C]``.

    Raises:
        InputError: If files cannot be used; the message lists them.
    """
    return read_images([path for path, _ in _files(folder, list(folder.parts))], preprocessing)


def read_calibration(folder: ImageFolder, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the training images of a folder, all if it has no training split, uint8 ``[n, H, W, C]``.

    Raises:
        InputError: If files cannot be used; the message lists them.
    """
    return read_images([path for path, _ in _training(folder)], preprocessing)


def read_training(
    folder: ImageFolder, preprocessing: Preprocessing, class_names: Sequence[str], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return up to ``count`` of the images that `read_calibration` returns, spread evenly, and their classes.

    Args:
        folder: The folder.
        preprocessing: What turns an image file into an input.
        class_names: One name for each logit.
        count: How many images to return at most.

    Returns:
        Images, uint8 ``[n, H, W, C]``, and their classes, int64 ``[n]``.

    Raises:
        InputError: If the class of an image is not known, or files cannot be used; the message lists them.
    """
    folder = _named_alike(folder, class_names)
    files = _training(folder)
    files = [files[place] for place in even_sample(len(files), count)]
    labels, why = _labels(folder, files, class_names)
    if why:
        raise InputError(f"the class of each training image is needed, and is not known: {why}")
    return read_images([path for path, _ in files], preprocessing), labels


def _training(folder: ImageFolder) -> list[tuple[Path, str]]:
    """Return the files of the training split, or of all splits if there is none."""
    if folder.trouble:
        _logger.warning("all images of %s are used, as its splits are not clear: %s", folder.folder, folder.trouble)
    return _files(folder, [TRAIN] if TRAIN in folder.parts else list(folder.parts))


def _named_alike(folder: ImageFolder, class_names: Sequence[str]) -> ImageFolder:
    """Return a folder as it is laid out if folders in folders are classes, where the names of the classes are paths."""
    return read_image_folder(folder.folder, nested=True) if levels_of(tuple(class_names)) else folder


def _held_out(folder: ImageFolder) -> list[tuple[Path, str]]:
    splits = [split for split in folder.parts if split != TRAIN] or list(folder.parts)
    return _files(folder, splits)


def _files(folder: ImageFolder, splits: Sequence[str]) -> list[tuple[Path, str]]:
    """Return the files of some splits, and tell which that are."""
    files = folder.files(*splits)
    if not files:
        raise InputError(f"{' and '.join(str(folder.parts[split].folder) for split in splits)} has no files")
    if len(splits) < len(folder.parts):
        used = " and ".join(str(folder.parts[split].folder) for split in splits)
        _logger.warning("%s is split: only the images of %s are used", folder.folder, used)
    return files


def _labels(
    folder: ImageFolder, files: Sequence[tuple[Path, str]], class_names: Sequence[str]
) -> tuple[NDArray[np.int64], str]:
    """Return the class of each file, int64 ``[n]``, -1 where it is not known, and why that is."""
    names = sorted({name for _, name in files} - {""})
    places = match_names(names, class_names)
    if renamed := [
        f"{name!r} counts as {class_names[place]!r}" for name, place in places.items() if name != class_names[place]
    ]:
        _logger.warning("%s spells class names differently from the model: %s", folder.folder, listed(renamed))
    labels = np.array([places.get(name, -1) for _, name in files], np.int64)
    if (labels >= 0).all():
        return labels, ""
    if folder.trouble:
        return labels, folder.trouble
    strange = [name for name in names if name not in places]
    if not strange:
        return labels, f"images of {folder.folder} lie in no class folder"
    return labels, (
        f"{folder.folder} has folders that are not named after a class: {listed(strange)}; the classes are "
        f"{listed(class_names)}"
    )
