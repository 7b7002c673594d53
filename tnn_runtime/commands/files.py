"""The image files that a command is given, and what it says of those that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tnn_runtime.console import say
from tnn_runtime.errors import InputError
from tnn_runtime.images.walk import read_tree
from tnn_runtime.text import printable

__all__ = ["Found", "find_files", "refuse_unusable"]


class Found(NamedTuple):
    """What some paths stand for.

    Args:
        files: The files; each may still turn out to be no image.
        empty: What is wrong with folders that are empty.
        errors: What is wrong with files that cannot be used.
    """

    files: list[Path]
    empty: list[str]
    errors: list[str]


def find_files(paths: Sequence[Path]) -> Found:
    """Return the files that some paths stand for: a folder stands for every file below it."""
    found = Found([], [], [])
    for path in paths:
        if not path.is_dir():
            found.files.append(path)
            continue
        folder, unusable = read_tree(path)
        found.files.extend(folder.below)
        found.errors.extend(unusable.values())
        if not folder.below and not unusable:
            found.empty.append(f"{printable(str(path))} has no files; expected images")
    return found


def refuse_unusable(name: str, found: Found, total: int) -> None:
    """Tell what was wrong, each on a line on standard error; the last one is the error that is raised.

    Args:
        name: What to call the command.
        found: What was wrong.
        total: How many files there were.

    Raises:
        InputError: If anything was.
    """
    if problems := found.empty + found.errors:
        for problem in problems[:-1]:
            say(f"{name}: {problem}", file=sys.stderr)
        count = f"; {len(found.errors)} of {total} files cannot be used" if found.errors and total > 1 else ""
        raise InputError(problems[-1] + count)
