"""Output paths, which are checked before the work that they are for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnn_runtime.errors import OutputExistsError, UsageError
from tnn_runtime.text import why_not_utf8

__all__ = ["PARTIAL", "check_file", "check_folder", "naming", "refuse_among_images", "refuse_unwritable"]

PARTIAL = ".partial"
"""How the names of files and folders end that are not finished."""


def check_file(target: Path, option: str, *, overwrite: bool = True) -> None:
    """Make sure that a file may be written.

    Args:
        target: The file; its folder has to exist.
        option: What it was given for, such as ``--json``.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExistsError: If it exists and must not be overwritten, is something else, or cannot be made.
    """
    if target.is_dir():
        raise OutputExistsError(f"{target} is a folder; choose another file for {option}")
    if not target.parent.is_dir():
        raise OutputExistsError(
            f"{target} has no folder to lie in; make {target.parent}, or choose another file for {option}"
        )
    if target.exists() and not target.is_file():
        raise OutputExistsError(f"{target} is a device or a pipe; choose another file for {option}")
    if os.path.lexists(target) and not overwrite:
        raise OutputExistsError(f"{target} already exists; choose another file for {option} or pass --overwrite")
    refuse_unwritable(target, f"another file for {option}")


def check_folder(target: Path, option: str) -> None:
    """Make sure that files may be written into a folder.

    Args:
        target: The folder; it need not exist.
        option: What it was given for, such as ``--plots``.

    Raises:
        OutputExistsError: If it is something else, or cannot be made or written to.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise OutputExistsError(f"{target} is a file; choose a folder for {option}")
    refuse_unwritable(target / "file" if target.is_dir() else target, f"another folder for {option}")


def refuse_among_images(target: Path, *folders: Path | None) -> None:
    """Make sure that a folder of ours is not made where the next command would take it for a class.

    Args:
        target: The folder to be made.
        folders: Folders of images; ``None`` for one that was not given.

    Raises:
        UsageError: If it lies in one of them.
    """
    for images in folders:
        if images is not None and target.resolve().is_relative_to(images.resolve()):
            raise UsageError(
                f"the output folder {target} lies among the images, in {images}, where it would be taken for a class; "
                "choose another one"
            )


def refuse_unwritable(target: Path, remedy: str) -> None:
    """Make something for a moment where a file or folder is to be made, under a name that is longer than its own.

    Args:
        target: What is to be made.
        remedy: What to choose if it cannot be.

    Raises:
        OutputExistsError: If nothing can be made there, or its path is not UTF-8.
    """
    if why := why_not_utf8(os.path.abspath(target)):
        raise OutputExistsError(f"{why}, or choose {remedy}")
    parent = next(folder for folder in Path(os.path.abspath(target)).parents if os.path.lexists(folder))
    try:
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=PARTIAL, dir=parent).cleanup()
    except OSError as error:
        raise OutputExistsError(f"{target} cannot be made in {parent} ({error.strerror}); choose {remedy}") from error


@contextmanager
def naming(target: Path, temporary: Path) -> Iterator[None]:
    """Let errors name what is written, and not the temporary file or folder that stands for it.

    Args:
        target: What is written.
        temporary: What it is called until it is finished.
    """

    def named(value: Any) -> Any:
        return value.replace(str(temporary), str(target)) if isinstance(value, str) else value

    try:
        yield
    except Exception as error:
        error.args = tuple(map(named, error.args))
        if isinstance(error, OSError):
            error.filename, error.filename2 = named(error.filename), named(error.filename2)
        raise
