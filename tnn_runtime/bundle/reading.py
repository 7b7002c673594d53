"""Folders that are read as they are at one moment: what was checked is what is used, whatever becomes of the path."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import re
import stat
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.storage import FolderKind, previous_of
from tnn_runtime.errors import ArtifactError
from tnn_runtime.text import why_not_utf8

__all__ = ["OpenFolder", "read_arrays", "read_folder", "read_json"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_LONG = 80
_KINDS = {"numbers": {*"biuf"}, "text": {"U"}}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ALWAYS_ALLOWED = 64 << 20
_LARGEST_RATIO = 16
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_ATTEMPTS = 100
"""How often a folder is read again that was replaced while it was read."""
_GAP_S = 0.5
"""How long a folder is waited for that is missing while its predecessor is there: one overwrite renames two folders."""
_LOOK_AGAIN_S = 0.005
_HOLDS = os.open in os.supports_dir_fd
"""Whether this system holds folders open; on Windows, what is open cannot be replaced anyway."""


class OpenFolder:
    """A folder that is held open: all that is read from it is of this very folder, even if its path gets another one.

    Args:
        path: The folder, or a link to it.
        kind: What it is.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path, kind: FolderKind) -> None:
        self.path = path
        self.kind = kind
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY) if _HOLDS else None

    def close(self) -> None:
        """Let go of the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def is_replaced(self) -> bool:
        """Return whether the path leads to another folder by now, or nowhere."""
        if self._descriptor is None:
            return False
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        return (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)

    def has(self, name: str) -> bool:
        """Return whether there is something of that name.

        Raises:
            ArtifactError: If it is no plain name.
        """
        self._check_name(name)
        try:
            os.lstat(self._place(name), dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            ArtifactError: If it cannot be read.
        """
        with self._open(name) as file:
            return file.read()

    def read_verified(self, name: str, recorded: Any) -> bytes:
        """Return the content of a file that has the recorded size and hash.

        Args:
            name: The file.
            recorded: Its ``size`` in bytes and its ``sha256`` in hexadecimal.

        Raises:
            ArtifactError: If the name leaves the folder, or the file is missing or another one.
        """
        self._check_record(name, recorded)
        with self._open(name) as file:
            self._check_size(name, file, recorded)
            content = file.read()
        self._check_hash(name, hashlib.sha256(content).hexdigest(), recorded)
        return content

    def verify(self, files: Mapping[str, Any], optional: Collection[str] = ()) -> None:
        """Make sure that files have the recorded sizes and hashes.

        Args:
            files: What was recorded of each file, by its name.
            optional: Files that may be missing.

        Raises:
            ArtifactError: As `read_verified`.
        """
        for name, recorded in files.items():
            self._check_record(name, recorded)
            if name in optional and not self.has(name):
                continue
            with self._open(name) as file:
                self._check_size(name, file, recorded)
                found = hashlib.file_digest(file, "sha256").hexdigest()
            self._check_hash(name, found, recorded)

    def _check_name(self, name: str) -> None:
        if not _SAFE_NAME.fullmatch(name):
            raise ArtifactError(
                f"{self.kind.name} {self.path} lists the file name {_short(name)!r}, which is not a plain name inside "
                "the folder; do not use it"
            )

    def _check_record(self, name: str, recorded: Any) -> None:
        kind = self.kind.name
        self._check_name(name)
        if not isinstance(recorded, Mapping) or set(recorded) != {"size", "sha256"}:
            raise ArtifactError(
                f"{kind} {self.path} records {recorded!r} for {name}, expected its size and sha256; copy the {kind} "
                "again"
            )

    def _check_size(self, name: str, file: BufferedReader, recorded: Mapping[str, Any]) -> None:
        size = os.fstat(file.fileno()).st_size
        if size != recorded["size"]:
            raise ArtifactError(
                f"{self.path / name} has {size} bytes where {_short(repr(recorded['size']))} were recorded (truncated "
                f"or altered); copy the {self.kind.name} again"
            )

    def _check_hash(self, name: str, found: str, recorded: Mapping[str, Any]) -> None:
        if found != recorded["sha256"]:
            raise ArtifactError(
                f"{self.path / name} does not match its recorded SHA-256 (altered); copy the {self.kind.name} again"
            )

    @contextmanager
    def _open(self, name: str) -> Iterator[BufferedReader]:
        """Open a file that lies in the folder itself."""
        missing = f"{self.path / name} is missing or not a regular file; copy the {self.kind.name} again"
        try:
            if not stat.S_ISREG(os.lstat(self._place(name), dir_fd=self._descriptor).st_mode):
                raise ArtifactError(missing)
            descriptor = os.open(self._place(name), _FLAGS, dir_fd=self._descriptor)
        except FileNotFoundError as error:
            raise ArtifactError(missing) from error
        except OSError as error:
            raise ArtifactError(f"{self.path / name} cannot be read ({error.strerror}); make it readable") from error
        with open(descriptor, "rb") as file:
            yield file

    def _place(self, name: str) -> str | Path:
        return self.path / name if self._descriptor is None else name


def read_folder(target: Path, kind: FolderKind, read: Callable[[OpenFolder], T]) -> T:
    """Return what ``read`` makes of a folder, all of it from one folder, even if it is overwritten meanwhile.

    The predecessor of an interrupted overwrite is only read if no other process puts the folder there within half a
    second, and never in silence.

    Args:
        target: The folder that the user named.
        kind: What it should be.
        read: Reads from the open folder; it is called again if the folder was replaced before it had read all.

    Raises:
        ArtifactError: If there is no such folder, its path is not UTF-8, or ``read`` raises it for a folder that
            nobody has replaced.
    """
    if why := why_not_utf8(target):
        raise ArtifactError(why)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            folder = OpenFolder(_there(target, kind), kind)
        except FileNotFoundError as error:
            if os.path.lexists(target) or previous_of(target).exists():
                continue
            raise ArtifactError(f"{target} does not exist; {_expected(kind)}") from error
        except NotADirectoryError as error:
            raise ArtifactError(f"{target} is not a folder; {_expected(kind)}") from error
        except OSError as error:
            raise ArtifactError(f"{target} cannot be read ({error.strerror}); {_expected(kind)}") from error
        with contextlib.closing(folder):
            try:
                if not folder.has(kind.marker):
                    other = next((told for marker, told in kind.instead if folder.has(marker)), None)
                    remedy = "" if other is None else f": {other.format(target)}"
                    raise ArtifactError(f"{target} has no {kind.marker}; {_expected(kind)}{remedy}")
                return read(folder)
            except ArtifactError:
                if attempt == _ATTEMPTS or not folder.is_replaced():
                    raise
    raise ArtifactError(f"{target} is replaced again and again while it is read; wait until that ends, and try again")


def _expected(kind: FolderKind) -> str:
    return f"expected a {kind.name} folder with {kind.marker} in it"


def _there(target: Path, kind: FolderKind) -> Path:
    """Return the path of a folder, or where an interrupted overwrite has left the one before."""
    previous = previous_of(target)
    end = time.monotonic() + _GAP_S
    while not os.path.lexists(target) and previous.exists():
        if time.monotonic() >= end:
            _LOG.warning(
                "%s is missing, as if an overwrite had been interrupted: the %s before it, %s, is read; write it again",
                *(target, kind.name, previous),
            )
            return previous
        time.sleep(_LOOK_AGAIN_S)
    return target


def read_json(path: Path, kind: str, newest_schema: int, content: bytes | None = None) -> dict[str, Any]:
    """Read a JSON object whose ``schema_version`` this version of the project understands.

    Args:
        path: The file.
        kind: What it belongs to, for the error message.
        newest_schema: The newest version that is understood.
        content: What is in it, if it has been read already.

    Raises:
        ArtifactError: If the file cannot be read, is no JSON object, or has a schema that is not understood.
    """
    try:
        found = json.loads((path.read_bytes() if content is None else content).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); copy the {kind} again") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds a JSON {type(found).__name__}, expected an object; copy the {kind} again")
    version = found.get("schema_version")
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
    return found


def read_arrays(
    path: Path,
    *names: str,
    optional: Sequence[str] = (),
    text: Sequence[str] = (),
    content: bytes | None = None,
    most_bytes: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Read named arrays of numbers from a ``.npz`` file, without pickle.

    The header of each array is looked at first: data that would take more than is allowed is not unpacked.

    Args:
        path: The file.
        names: Arrays that it must have.
        optional: Arrays that are read where it has them.
        text: Those of them that hold text.
        content: What is in the file, if it has been read already.
        most_bytes: What the arrays may take together, unpacked; by default 16 times what the file takes, and at least
            64 MiB.

    Raises:
        ArtifactError: If the file cannot be read, is too large, lacks an array, or has something else in it.
    """
    try:
        content = path.read_bytes() if content is None else content
        limit = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * len(content)) if most_bytes is None else most_bytes
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            chosen = [*names, *(name for name in optional if name in arrays)]
            size = sum(_unpacked(arrays.zip, name) for name in chosen)
            if size > limit:
                raise ValueError(f"its arrays take {size} bytes, expected at most {limit}")
            found = {name: arrays[name] for name in chosen}
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


def _unpacked(archive: zipfile.ZipFile, name: str) -> int:
    """Return how many bytes a member takes unpacked, by the archive's own record and by the header of its array."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        try:
            read_header = _HEADERS[np.lib.format.read_magic(file)]
        except (KeyError, ValueError):
            return member.file_size
        shape, _, dtype = read_header(file)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
