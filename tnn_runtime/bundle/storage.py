"""Folders of files that are whole or absent: how checkpoints and bundles are written and verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.claim import claimed, is_claimed
from tnn_runtime.bundle.outputs import PARTIAL, naming, refuse_unwritable
from tnn_runtime.errors import ArtifactError, OutputExistsError
from tnn_runtime.text import why_not_utf8

__all__ = [
    "FolderKind",
    "describe_files",
    "existing_folder",
    "is_empty",
    "new_folder",
    "read_arrays",
    "read_json",
    "refuse_existing",
    "remove",
    "stands",
    "verify_files",
    "write_bytes",
    "write_json",
    "write_text",
]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_LEFT = (f"*{PARTIAL}", ".*.previous", ".DS_Store")
"""Names of what a kill or a desktop leaves behind."""
_LONG = 80
_KINDS = {"numbers": {*"biuf"}, "text": {"U"}}


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that this project writes.

    Args:
        name: What it is called in an error: ``"checkpoint"``.
        marker: The file or folder that each folder of the kind has.
        contents: Patterns of the names of all else that is written there.
    """

    name: str
    marker: str
    contents: tuple[str, ...]

    def strangers(self, folder: Path) -> list[str]:
        """Return the names of files and folders in ``folder`` that nobody wrote who makes folders of this kind."""
        known = (self.marker, *self.contents, *_LEFT)
        return sorted(name for name in os.listdir(folder) if not any(fnmatchcase(name, one) for one in known))


@contextmanager
def new_folder(target: Path, kind: FolderKind, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block ends without an error.

    The content is flushed to disk before the rename. With ``overwrite``, the old folder is first moved to
    ``.NAME.previous``, where `existing_folder` finds it should the process die between the two renames; so
    a kill at any moment leaves the old or the new folder whole.

    Args:
        target: Where the finished folder will stand.
        kind: What it is to be.
        overwrite: Whether an existing ``target`` may be replaced.

    Raises:
        OutputExistsError: As `refuse_existing`, also at the end: another process may have made ``target`` meanwhile.
    """
    refuse_existing(target, kind, overwrite=overwrite)
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    left_by_a_kill = re.compile(rf"\.{re.escape(target.name)}\.\w+{re.escape(PARTIAL)}")
    for path in target.parent.iterdir():
        if left_by_a_kill.fullmatch(path.name) and not is_claimed(path):
            remove(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
    try:
        with naming(target, temporary):
            with claimed(temporary):
                yield temporary
                temporary.chmod(0o755)
                _flush(temporary)
            refuse_existing(target, kind, overwrite=overwrite)
            previous = _previous(target)
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
    return os.path.lexists(target) or _previous(target).exists()


def existing_folder(target: Path, kind: FolderKind) -> Path:
    """Return the folder to read for ``target``: itself, or its predecessor after an interrupted overwrite.

    Args:
        target: The folder that the user named.
        kind: What it should be.

    Raises:
        ArtifactError: If there is no such folder, it lacks the marker, or its path is not UTF-8.
    """
    if why := why_not_utf8(target):
        raise ArtifactError(why)
    folder = target if os.path.lexists(target) else _previous(target)
    if (folder / kind.marker).is_file():
        return folder
    problem = f"has no {kind.marker}" if target.is_dir() else "is not a folder" if target.exists() else "does not exist"
    raise ArtifactError(f"{target} {problem}; expected a {kind.name} folder with {kind.marker} in it")


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"size": bytes, "sha256": hex}}`` for files in ``folder``."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}


def verify_files(folder: Path, files: Mapping[str, Any], kind: str, optional: Collection[str] = ()) -> None:
    """Check that every listed file lies in ``folder`` with the size and the SHA-256 that were recorded.

    Args:
        folder: The folder.
        files: What was recorded of each file, by its name.
        kind: What the folder is, for the error message.
        optional: Files that may be missing.

    Raises:
        ArtifactError: On a name that leaves the folder, and on a missing, truncated or altered file.
    """
    for name, expected in files.items():
        if not _SAFE_NAME.fullmatch(name):
            raise ArtifactError(
                f"{kind} {folder} lists the file name {_short(name)!r}, which is not a plain name inside the folder; "
                "do not use it"
            )
        if not isinstance(expected, Mapping) or set(expected) != {"size", "sha256"}:
            raise ArtifactError(
                f"{kind} {folder} records {expected!r} for {name}, expected its size and sha256; copy the {kind} again"
            )
        path = folder / name
        if name in optional and not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{path} is missing or not a regular file; copy the {kind} again")
        size = path.stat().st_size
        if size != expected["size"]:
            raise ArtifactError(
                f"{path} has {size} bytes where {_short(repr(expected['size']))} were recorded (truncated or altered); "
                f"copy the {kind} again"
            )
        if _sha256(path) != expected["sha256"]:
            raise ArtifactError(f"{path} does not match its recorded SHA-256 (altered); copy the {kind} again")


def read_json(
    path: Path, kind: str, newest_schema: int, verify: Callable[[bytes], None] = lambda content: None
) -> dict[str, Any]:
    """Read a JSON object whose ``schema_version`` this version of the project understands.

    Args:
        path: The file.
        kind: What it belongs to, for the error message.
        newest_schema: The newest version that is understood.
        verify: Raises an error on bytes that must not be looked into.

    Raises:
        ArtifactError: If the file cannot be read, is no JSON object, or has a schema that is not understood.
    """
    try:
        raw = path.read_bytes()
        verify(raw)
        content = json.loads(raw.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); copy the {kind} again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds a JSON {type(content).__name__}, expected an object; copy the {kind} again")
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(
            f"{path} has schema_version {version!r}, expected an integer from 1 to {newest_schema}; copy the "
            f"{kind} again"
        )
    if version > newest_schema:
        raise ArtifactError(
            f"{path} has schema version {version}, and this installation reads up to {newest_schema}; "
            f"upgrade tnn-deploy or make the {kind} again with this version"
        )
    return content


def read_arrays(
    path: Path, *names: str, optional: Sequence[str] = (), text: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read named arrays of numbers from a ``.npz`` file, without pickle.

    Args:
        path: The file.
        names: Arrays that it must have.
        optional: Arrays that are read where it has them.
        text: Those of them that hold text.

    Raises:
        ArtifactError: If the file cannot be read, lacks an array, or has something else in it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*names, *(name for name in optional if name in arrays))}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen unrelated classes here
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{path} cannot be read ({reason}); expected the arrays {', '.join(names)}; make it again"
        ) from error
    for name, array in found.items():
        # What is no array in the archive comes as the bytes that it is.
        kind = array.dtype.kind if isinstance(array, np.ndarray) else None
        expected = "text" if name in text else "numbers"
        if kind not in _KINDS[expected]:
            raise ArtifactError(f"{path} has no array of {expected} called {name}; make it again")
    return found


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


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _previous(target: Path) -> Path:
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
