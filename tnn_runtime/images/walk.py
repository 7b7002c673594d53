"""Everything below a folder, each thing as what it is: nothing that cannot be read is passed over in silence."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tnn_runtime.images.files import REPLACE, reason
from tnn_runtime.text import printable

__all__ = ["CLUTTER", "Entry", "Folder", "Kind", "read_tree", "walk"]

_LOG = logging.getLogger(__name__)

CLUTTER = (
    "._*",
    ".ipynb_checkpoints",
    ".trash*",
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
)
"""What file systems and other programs leave behind, as patterns of names in lower case."""

_IS_CLUTTER = re.compile("|".join(map(translate, CLUTTER))).match

_Identity: TypeAlias = tuple[int, int]
"""The device of a folder and its number there: the same for all paths that lead to it."""

_Above: TypeAlias = list[tuple[Path, _Identity, Iterator[os.DirEntry[str]]]]
"""The folders that something lies in, each with what is still to be looked at there."""


class Kind(Enum):
    """What something in a folder is."""

    FILE = "file"
    FOLDER = "folder"
    CLUTTER = "clutter"
    UNUSABLE = "unusable"


class Entry(NamedTuple):
    """Something in a folder.

    Args:
        path: Where it is.
        kind: What it is.
        why: A sentence that says what is wrong and what to do, if it is `Kind.UNUSABLE`.
    """

    path: Path
    kind: Kind
    why: str = ""


@dataclass
class Folder:
    """A folder with what is in it.

    Args:
        path: Where it is.
        files: The files that lie directly in it.
        below: All files below it.
        folders: The folders that lie directly in it, by their names.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    below: list[Path] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)


def read_tree(path: Path) -> tuple[Folder, dict[Path, str]]:
    """Return a folder with all that is below it, in sorted order, and what is wrong with what cannot be read there.

    What other programs left behind is counted in a note.
    """
    root = Folder(path)
    unusable: dict[Path, str] = {}
    clutter = []
    for entry in walk(path):
        if entry.kind is Kind.UNUSABLE:
            unusable[entry.path] = entry.why
        elif entry.kind is Kind.CLUTTER:
            clutter.append(entry.path)
        else:
            _enter(root, entry)
    if clutter:
        _LOG.warning(
            "files and folders that other programs left behind are ignored: %d, the first is %s",
            len(clutter),
            printable(str(clutter[0])),
        )
    return root, unusable


def _enter(folder: Folder, entry: Entry) -> None:
    *outer, name = entry.path.parts[len(folder.path.parts) :]
    for part in outer:
        if entry.kind is Kind.FILE:
            folder.below.append(entry.path)
        folder = folder.folders[part]
    if entry.kind is Kind.FOLDER:
        folder.folders[name] = Folder(entry.path)
    else:
        folder.files.append(entry.path)
        folder.below.append(entry.path)


def walk(folder: Path) -> Iterator[Entry]:
    """Yield what is below a folder, in sorted order, and the folder itself if it cannot be read.

    Links to folders are followed, but not into a folder that the link lies in. Names that begin with a dot are left
    out, with what is in them; so is what is in `CLUTTER`, which is yielded as such.

    Args:
        folder: The folder.
    """
    above: _Above = []

    def enter(path: Path) -> Iterator[Entry]:
        try:
            found = os.stat(path)
            with os.scandir(path) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield _unreadable(path, error)
        else:
            above.append((path, (found.st_dev, found.st_ino), iter(names)))

    yield from enter(folder)
    while above:
        parent, _, entries = above[-1]
        entry = next(entries, None)
        if entry is None:
            above.pop()
            continue
        path = parent / entry.name
        if _IS_CLUTTER(entry.name.casefold()):
            yield Entry(path, Kind.CLUTTER)
        elif not entry.name.startswith("."):
            yield (found := _look(path, entry, above))
            if found.kind is Kind.FOLDER:
                yield from enter(path)


def _look(path: Path, entry: os.DirEntry[str], above: _Above) -> Entry:
    try:
        if entry.is_file(follow_symlinks=False):
            return Entry(path, Kind.FILE)
        found = entry.stat()
    except FileNotFoundError as error:
        if not entry.is_symlink():
            return _unreadable(path, error)
        return _unusable(path, f"is a link to {printable(os.readlink(path))}, which does not exist")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _unusable(path, "is a link that leads back to itself")
        return _unreadable(path, error)
    if stat.S_ISREG(found.st_mode):
        return Entry(path, Kind.FILE)
    if not stat.S_ISDIR(found.st_mode):
        return _unusable(path, "is a pipe, a socket or a device; expected an image file")
    for outer, identity, _ in above:
        if identity == (found.st_dev, found.st_ino):
            return _unusable(path, f"is a link back to {printable(str(outer))}, the folder that it lies in")
    return Entry(path, Kind.FOLDER)


def _unusable(path: Path, what: str) -> Entry:
    return Entry(path, Kind.UNUSABLE, f"{printable(str(path))} {what}{REPLACE}")


def _unreadable(path: Path, error: OSError) -> Entry:
    why = error.strerror or reason(error)
    return Entry(path, Kind.UNUSABLE, f"{printable(str(path))} cannot be read ({why}); make it readable, or remove it")
