"""Shared libraries of the system: which of those that a backend needs cannot be loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from tnn_runtime.engines.hardware import DRIVER

__all__ = ["missing_driver", "missing_libraries"]


def missing_libraries(libraries: Iterable[str], remedy: str) -> list[str]:
    """Return one line about those libraries that cannot be loaded, if there are any."""
    complaints = []
    for library in libraries:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            complaints.append(str(error).removesuffix(": No such file or directory"))
    return [f"{', '.join(complaints)} ({remedy})"] if complaints else []


def missing_driver() -> list[str]:
    """Return one line about the driver of NVIDIA, if it cannot be loaded."""
    return missing_libraries([DRIVER], "install the NVIDIA driver on a machine with an NVIDIA GPU")
