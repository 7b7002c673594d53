"""Folders of files that are whole or absent: how checkpoints and bundles are written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.claim import claimed, is_claimed
from tnn_runtime.bundle.outputs import PARTIAL, naming, refuse_unwritable
from tnn_runtime.errors import OutputExistsError

__all__ = [
    "FolderKind",
    "describe_files",
    "is_empty",
    "new_folder",
    "previous_of",
    "refuse_existing",
    "remove",
    "stands",
    "write_bytes",
    "write_json",
    "write_text",
]

_LEFT = (f"*{PARTIAL}", ".*.previous", ".DS_Store")
"""Names of what a kill or a desktop leaves behind."""


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that this project writes.

    Args:
        name: What it is called in an error: ``"checkpoint"``.
        marker: The file or folder that each folder of the kind has.
        contents: Patterns of the names of all else that is written there.
        instead: What to do with folders of other kinds, after the marker of each; ``{}`` in it stands for the folder.
    """

    name: str
    marker: str
    contents: tuple[str, ...]
    instead: tuple[tuple[str, str], ...] = ()

    def strangers(self, folder: Path) -> list[str]:
        """Return the names of files and folders in ``folder`` that nobody wrote who makes folders of this kind."""
        known = (self.marker, *self.contents, *_LEFT)
        return sorted(name for name in os.listdir(folder) if not any(fnmatchcase(name, one) for one in known))


@contextmanager
def new_folder(
    target: Path, kind: FolderKind, *, overwrite: bool = False, workshop: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block ends without an error.

    The content is flushed to disk before the rename. With ``overwrite``, the old folder is first moved to
    ``.NAME.previous``, where `tnn_runtime.bundle.reading` finds it should the process die between the two renames; so a
    kill at any moment leaves the old or the new folder whole.

    Args:
        target: Where the finished folder will stand.
        kind: What it is to be.
        overwrite: Whether an existing ``target`` may be replaced.
        workshop: An existing folder for the temporary and the old one, on the same file system; by default that in
            which ``target`` will stand.

    Raises:
        OutputExistsError: As `refuse_existing`, also at the end: another process may have made ``target`` meanwhile.
    """
    refuse_existing(target, kind, overwrite=overwrite)
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    workshop = target.parent if workshop is None else workshop
    left_by_a_kill = re.compile(rf"\.{re.escape(target.name)}\.\w+{re.escape(PARTIAL)}")
    for path in workshop.iterdir():
        if left_by_a_kill.fullmatch(path.name) and not is_claimed(path):
            remove(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=workshop))
    try:
        with naming(target, temporary):
            with claimed(temporary):
                yield temporary
                temporary.chmod(0o755)
                _flush(temporary)
            refuse_existing(target, kind, overwrite=overwrite)
            previous = workshop / previous_of(target).name
            if target.exists():
                remove(previous)
                target.rename(previous)
            temporary.rename(target)
            _fsync(target.parent)
            remove(previous)
    finally:
        remove(temporary)


def refuse_existing(target: Path, kind: FolderKind, *, overwrite: bool, in_place: bool = False) -> None:
    """Make sure that ``target`` may be written.

    Args:
        target: The folder to be made.
        kind: What it is to be; a folder of another kind, or with anything else in it, is never overwritten.
        overwrite: Whether an existing folder may be replaced.
        in_place: Whether an existing folder stays, and only what is in it is replaced.

    Raises:
        OutputExistsError: If ``target`` exists and must not be overwritten, is something else, or cannot be made.
    """
    if not os.path.lexists(target):
        refuse_unwritable(target, "another output folder")
        return
    names = [name for name in os.listdir(target) if not name.endswith(PARTIAL)] if target.is_dir() else [target.name]
    if names and (kind.marker not in names or not target.is_dir()):
        raise OutputExistsError(
            f"{target} already exists and has no {kind.marker}, so it is something else and is not overwritten; choose "
            "another output folder"
        )
    if overwrite and (strangers := kind.strangers(target)):
        raise OutputExistsError(
            f"{target} has {_listed(strangers)} in it, which --overwrite would delete and which belongs to no "
            f"{kind.name}; move it elsewhere, or choose another output folder"
        )
    if not overwrite:
        raise OutputExistsError(
            f"{target} already exists; choose another output folder or pass --overwrite (overwrite=True)"
        )
    if not in_place:
        if os.path.ismount(target):
            raise OutputExistsError(f"{target} is a mount point, which cannot be replaced; choose a folder in it")
        refuse_unwritable(target, "another output folder")


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing, but for what a killed process may have left."""
    return all(name.endswith(PARTIAL) for name in os.listdir(folder))


def stands(target: Path) -> bool:
    """Return whether there is a folder ``target``, or its predecessor after an interrupted overwrite."""
    return os.path.lexists(target) or previous_of(target).exists()


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"size": bytes, "sha256": hex}}`` for files in ``folder``."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, as `write_text` does. Non-finite numbers are refused: JSON has none."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole at any moment: the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is whole at any moment, as `write_text` does; an error leaves the old one."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    with naming(path, temporary):
        try:
            temporary.write_bytes(content)
            _fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def previous_of(target: Path) -> Path:
    """Return where a folder is kept for the moment in which another one takes its place."""
    return target.parent / f".{target.name}.previous"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
