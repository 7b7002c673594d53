"""A kill of this process between two operations on files: at a moment that is counted, and not timed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["kill_before"]

_ON_FILES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod"}
"""The audit events of the interpreter that a program raises before it opens or changes a file."""


def kill_before(operation: int, folder: Path) -> Callable[[], None]:
    """Arm a SIGKILL of this process, just before one of the operations on files in or beside ``folder``.

    Args:
        operation: Which one, counted from 0 since the returned function was called.
        folder: Whose files count, and those of the temporary folders with which it is replaced.

    Returns:
        What starts the count; calling it again changes nothing.
    """
    left = None
    around = str(folder.parent) + os.sep

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left is None or event not in _ON_FILES or not str(arguments[0]).startswith(around):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def start() -> None:
        nonlocal left
        if left is None:
            left = operation

    sys.addaudithook(hear)
    return start
