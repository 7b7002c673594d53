"""The names of the logits, as a list and as the file that a person writes, with one a line."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tnn_runtime.errors import UsageError
from tnn_runtime.text import why_not_utf8
from tnn_train.fields import repeated
from tnn_train.text_files import read_lines

__all__ = ["check_class_names", "read_class_file"]

_EXPECTED = "a text file with one class name a line"
_NUMBER, _BETWEEN, _NAME = r"(?P<number>\d{1,9})", r"(?:\s*[:;,=|]\s*|[.)]?\s+)", r"(?P<name>.+?)"
_NUMBERED = (re.compile(_NUMBER + _BETWEEN + _NAME), re.compile(_NAME + _BETWEEN + _NUMBER))
"""Lines that also say which logit a name belongs to: ``0 cat``, ``0: cat`` or ``cat,0``."""

_logger = logging.getLogger(__name__)


def check_class_names(names: Iterable[str]) -> None:
    """Make sure that each class has a name of its own, in UTF-8: bundles and predictions tell classes by their names.

    Args:
        names: The names.

    Raises:
        UsageError: If two classes have the same name, or one is not UTF-8.
    """
    names = list(names)
    if why := next(filter(None, map(why_not_utf8, names)), ""):
        raise UsageError(why)
    if (twice := repeated(names)) is not None:
        raise UsageError(f"class_names has two classes called {twice!r}; expected a name of its own for each")


def read_class_file(path: Path, folders: Collection[str] = ()) -> list[str]:
    """Return the names of the logits in their order.

    Where the lines are numbered from 0 or from 1, the numbers give the order and are no part of the names, and a note
    says so. They are a part of them if some names would be equal without, or if folders of images are called so.

    Args:
        path: The file.
        folders: The names of the subfolders of the images, where there are such.

    Raises:
        UsageError: If the file cannot be read, has no names, or has a name twice.
    """
    lines: dict[str, int] = {}
    for number, name in read_lines(path, _EXPECTED):
        if name in lines:
            raise UsageError(f"{path}, line {number}: got {name!r}, as in line {lines[name]}; expected each class once")
        lines[name] = number
    if not lines:
        raise UsageError(f"{path} has no class names; expected {_EXPECTED}")
    return list(lines) if lines.keys() & set(folders) else _without_numbers(path, list(lines))


def _without_numbers(path: Path, lines: list[str]) -> list[str]:
    """Return the names in the order of their numbers; the lines themselves where they are not numbered."""
    for pattern in _NUMBERED:
        found = [match for line in lines if (match := pattern.fullmatch(line))]
        names = {int(match["number"]): match["name"] for match in found}
        if len(set(names.values())) < len(lines):
            continue
        numbers = sorted(names)
        if numbers[0] not in (0, 1) or numbers[-1] - numbers[0] != len(lines) - 1:
            _logger.warning(
                "each line of %s has a number, as %r; these are not those of %d classes, and count as parts of the "
                "names",
                *(path, lines[0], len(lines)),
            )
            break
        _logger.warning(
            "the lines of %s are numbered from %d; the numbers give the order of the classes, and are no part of the "
            "names: the first is %r",
            *(path, numbers[0], names[numbers[0]]),
        )
        return [names[number] for number in numbers]
    return lines
