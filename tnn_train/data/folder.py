"""Image folders: one subfolder for each class, split or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tnn_runtime.images.files import listed
from tnn_runtime.images.folders import TRAIN, ImageFolder, alike_names, has_image_name, match_names, read_image_folder
from tnn_train.data.sources import Found, Labelled, read_headers, usual_size
from tnn_train.errors import DataError

__all__ = ["read_folder"]

_logger = logging.getLogger(__name__)


def read_folder(folder: Path, *, nested: bool = False) -> Found:
    """Read a folder of classes, or one whose subfolders are the splits; every header is read.

    Images that stand beside the folders of classes are left out, and a warning is logged.

    Args:
        folder: The folder.
        nested: As for `read_image_folder`.

    Raises:
        DataError: If the layout is another one, or a class has no images for training.
    """
    images = read_image_folder(folder, nested=nested)
    if images.trouble:
        raise DataError(images.trouble)
    classes = _classes(images)
    unusable = dict(images.unusable)
    splits: dict[str, Labelled] = {}
    sizes: list[tuple[int, int]] = []
    for split, part in images.parts.items():
        labels = _match(images, split, classes)
        files = [(path, labels[name]) for name in sorted(labels, key=labels.__getitem__) for path in part.classes[name]]
        headers = read_headers([path for path, _ in files], part.folder.name)
        unusable |= headers.unusable
        sizes += headers.sizes.values()
        paths = [path for path, _ in files if path in headers.sizes]
        splits[split] = Labelled(
            paths, np.array([label for path, label in files if path in headers.sizes], np.int64), paths
        )
    _tell_strays(images)
    return Found(splits, tuple(classes), 3, usual_size(sizes), unusable)


def _classes(images: ImageFolder) -> Sequence[str]:
    """Return the names of the classes, each of which has files to train on."""
    if TRAIN not in images.parts:
        raise DataError(
            f"{images.folder} has {' and '.join(images.parts)}, and no train; expected images to train on, in "
            f"{images.folder / TRAIN}"
        )
    part = images.parts[TRAIN]
    if len(part.classes) < 2:
        raise DataError(
            f"{part.folder} has {len(part.classes)} class folders and {len(part.beside)} files beside them; "
            "expected at least 2 folders, each with the images of one class"
        )
    empty = [name for name, files in part.classes.items() if not files]
    if empty and not images.unusable:  # else these are told first
        raise DataError(
            f"{part.folder} has class folders without images: {listed(empty)}; add images to them, or remove them"
        )
    if alike := alike_names(part.classes):
        _logger.warning(
            "class folders of %s have names that look alike: %s; put the images of one class into one folder",
            part.folder,
            listed([" and ".join(names) for names in alike]),
        )
    return images.class_names


def _match(images: ImageFolder, split: str, classes: Sequence[str]) -> dict[str, int]:
    """Return the label of each class folder of a split."""
    part, train = images.parts[split].folder, images.parts[TRAIN].folder
    names = images.parts[split].classes
    if not names:
        raise DataError(
            f"{part} has no class folders and {len(images.parts[split].beside)} files; expected a folder for each "
            f"class, as in {train}: add them, or give {train} alone, which is then split"
        )
    labels = match_names(names, classes)
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(
            f"{part} has classes that {train} lacks: {listed(unknown)}; add images of them to {train}, or remove them "
            f"from {part}"
        )
    if others := [f"{name!r} counts as {classes[label]!r}" for name, label in labels.items() if name != classes[label]]:
        _logger.warning("%s spells class names differently from %s: %s", part, train, listed(others))
    return labels


def _tell_strays(images: ImageFolder) -> None:
    """Tell of what has the name of an image, but stands beside class folders."""
    beside = [*images.beside, *(path for part in images.parts.values() for path in part.beside)]
    if strays := [path for path in beside if has_image_name(path)]:
        _logger.warning(
            "images beside the class folders are not used: %d, the first is %s; move them into the folders of their "
            "classes, or remove them",
            len(strays),
            min(strays),
        )
