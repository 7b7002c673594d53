"""Folders of images that users name."""

from __future__ import annotations

from pathlib import Path

from tnn_runtime.errors import InputError
from tnn_runtime.images.preprocess import find_images

__all__ = ["image_files"]


def image_files(folder: Path) -> list[Path]:
    """Return every file below a folder in sorted order.

    Raises:
        InputError: If it is no folder, or there is no file.
    """
    files = find_images(folder) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} has no files; expected a folder of images")
    return files
