"""Folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tnn_runtime.errors import OutputExistsError

try:
    import fcntl
except ImportError:  # Windows, which does not lock folders
    fcntl = None  # type: ignore[assignment]

__all__ = ["claimed", "is_claimed"]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; it is made, and removed again if it stays empty.

    The system lets go of it when the process ends, however it ends. On a file system that cannot lock, nothing is held.

    Args:
        folder: The folder.

    Raises:
        OutputExistsError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise OutputExistsError(
                f"another process is writing to {folder}; wait until it has ended, or choose another output folder"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()
    finally:
        os.close(descriptor)


def is_claimed(folder: Path) -> bool:
    """Return whether a process holds a folder."""
    if fcntl is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Return whether a folder could be locked, or its file system does not lock folders."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
