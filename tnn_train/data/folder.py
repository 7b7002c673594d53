"""Image folders: one subfolder for each class, split or not."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tnn_runtime.images.preprocess import FORMATS, find_class_folders, find_images
from tnn_train.data.sources import Found, Labelled, check_headers, usual_size
from tnn_train.errors import DataError

__all__ = ["read_folder"]

_logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "eval"}


def read_folder(folder: Path) -> Found:
    """Read a folder of classes, or one whose subfolders are the splits; every header is checked.

    Images that stand beside the folders of classes are left out, and a warning is logged.

    Raises:
        DataError: If the layout is another one, or a class has no images.
        InputError: If a file is no usable image.
    """
    subfolders = [path.name for path in find_class_folders(folder)]
    split_already = "train" in subfolders and (set(subfolders) <= set(_SPLITS) or not _HELD_OUT.isdisjoint(subfolders))
    if split_already and (strangers := set(subfolders) - set(_SPLITS)):
        raise DataError(
            f"{folder} has {', '.join(sorted(strangers))} beside train; expected train, test and optionally val, "
            "or one subfolder of images for each class"
        )
    parts = {name: folder / name for name in subfolders} if split_already else {"train": folder}
    classes = [path.name for path in find_class_folders(parts["train"])]
    if len(classes) < 2:
        raise DataError(
            f"{parts['train']} has {len(classes)} class folders and {_files(parts['train'])} files beside them; "
            "expected at least 2 folders, each with the images of one class"
        )
    splits: dict[str, Labelled] = {}
    sizes: list[tuple[int, int]] = []
    for name, part in parts.items():
        if unknown := sorted({path.name for path in find_class_folders(part)} - set(classes)):
            raise DataError(f"{part} has classes that {parts['train']} lacks: {', '.join(unknown)}")
        files = [_images(part / class_name) for class_name in classes]
        paths = [path for found in files for path in found]
        sizes += check_headers(paths, part.name)
        splits[name] = Labelled(paths, np.repeat(np.arange(len(classes)), [len(found) for found in files]))
    if strays := list(_strays({folder, *parts.values()})):
        _logger.warning(
            "images beside the class folders are not used: %d, the first is %s; move them into the folders of their "
            "classes, or remove them",
            len(strays),
            min(strays),
        )
    return Found(splits, tuple(classes), channels=3, image_size=usual_size(sizes))


def _images(folder: Path) -> list[Path]:
    files = find_images(folder)
    if not files:
        raise DataError(f"class folder {folder} is missing or has no images; add some, or remove the class")
    return files


def _strays(folders: Iterable[Path]) -> Iterable[Path]:
    """Yield what has the name of an image, but stands beside class folders."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    for folder in folders:
        for path in folder.iterdir():
            if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
                yield path


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.iterdir())
