"""Groups of images that are not to be divided: those of one patient, one camera, one scene."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_train.data.sources import Labelled
from tnn_train.errors import DataError
from tnn_train.text_files import read_rows

__all__ = ["read_groups"]

_logger = logging.getLogger(__name__)

_COLUMNS = ("image", "group")
_EXPECTED = "expected the columns image and group, a line for each image"


def read_groups(file: Path, folder: Path, splits: Mapping[str, Labelled]) -> dict[str, NDArray[np.int64]]:
    """Read the groups of the images of each set from a CSV file.

    Its first line names the columns ``image``, the path of an image from the folder on, and ``group``, any text; other
    columns are left alone. Without such a line, there are these two columns.

    Args:
        file: The CSV file.
        folder: The folder that its paths start from; they may also be those of the images as they are.
        splits: The sets.

    Returns:
        For each set the number of each image's group, int64 ``[N]``.

    Raises:
        UsageError: If the file cannot be read, or the images are not in files of their own.
        DataError: If a line is wrong, an image has no group, or a group has images in several sets.
    """
    if not all(len(part.paths) == len(part.labels) for part in splits.values()):
        raise UsageError(f"got groups in {file} for images that are not in files of their own; leave them out")
    places: dict[str, Path] = {}
    for path in (path for part in splits.values() for path in part.paths):
        places |= dict.fromkeys((_plain(path), os.path.abspath(path), os.path.relpath(path, folder)), path)
    groups: dict[Path, str] = {}
    strangers: list[tuple[int, str]] = []
    for number, image, group in _rows(file):
        found = places.get(_plain(image)) or places.get(_plain(image.replace("\\", "/")))
        if found is None:
            strangers.append((number, image))
        elif groups.setdefault(found, group) != group:
            raise DataError(
                f"{file}, line {number}: {found} is in the group {group!r}, and in {groups[found]!r} in a line before; "
                "expected one group for each image"
            )
    without = [path for path in dict.fromkeys(places.values()) if path not in groups]
    if without:
        raise DataError(
            f"{file} has no group for {len(without)} of {len(without) + len(groups)} images, the first is "
            f"{without[0]}; {_EXPECTED}"
        )
    if strangers:
        _logger.warning(
            "%s has lines for images that are not there: %d, the first is line %d, %s",
            file,
            len(strangers),
            *strangers[0],
        )
    numbers = {group: number for number, group in enumerate(sorted(set(groups.values())))}
    _refuse_divided(file, {name: {groups[path] for path in part.paths} for name, part in splits.items()})
    return {name: np.array([numbers[groups[path]] for path in part.paths], np.int64) for name, part in splits.items()}


def _plain(path: str | Path) -> str:
    return os.path.normpath(path)


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number, image and group of each line."""
    columns = (0, 1)
    for place, (line, cells) in enumerate(read_rows(file, _EXPECTED)):
        names = [cell.casefold() for cell in cells]
        if place == 0 and set(_COLUMNS) <= set(names):
            columns = (names.index(_COLUMNS[0]), names.index(_COLUMNS[1]))
            continue
        if len(cells) <= max(columns) or not all(cells[column] for column in columns):
            raise DataError(f"{file}, line {line}: got {','.join(cells)[:80]!r}; {_EXPECTED}")
        yield line, cells[columns[0]], cells[columns[1]]


def _refuse_divided(file: Path, groups: Mapping[str, set[str]]) -> None:
    """Make sure that the sets of the data set do not share a group."""
    seen: dict[str, str] = {}
    for name, members in groups.items():
        if divided := sorted(members & seen.keys()):
            others = f", and so have {len(divided) - 1} others" if len(divided) > 1 else ""
            raise DataError(
                f"{file}: the group {divided[0]!r} has images in the {seen[divided[0]]} and the {name} set that the "
                f"data comes with{others}; move its images into one of them"
            )
        seen |= dict.fromkeys(members, name)
