"""Shared libraries of the system: which of those that a backend needs cannot be loaded, or are too old."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

from tnn_runtime.engines.hardware import DRIVER

__all__ = ["CUDA_MAJOR", "driver_problems", "missing_libraries"]

CUDA_MAJOR = 13
"""The major version of CUDA that cuda-bindings is for, and TensorRT with it."""

_OLDEST_DRIVERS = {12: "525.60", 13: "580.65"}
"""The first drivers for Linux that run programs of a major version of CUDA, whatever its minor one."""

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def missing_libraries(libraries: Iterable[str], remedy: str) -> list[str]:
    """Return one line about those libraries that cannot be loaded, if there are any."""
    complaints = []
    for library in libraries:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            complaints.append(str(error).removesuffix(": No such file or directory"))
    return [f"{', '.join(complaints)} ({remedy})"] if complaints else []


def driver_problems(cuda: int = CUDA_MAJOR) -> list[str]:
    """Return one line about the driver of NVIDIA, if it cannot be loaded or is too old for a major version of CUDA."""
    if missing := missing_libraries([DRIVER], "install the NVIDIA driver on a machine with an NVIDIA GPU"):
        return missing
    supported = _supported_cuda()
    if supported is None or supported[0] >= cuda:
        return []
    oldest = f"driver {_OLDEST_DRIVERS[cuda]} or newer" if cuda in _OLDEST_DRIVERS else f"a driver for CUDA {cuda}"
    return [
        f"the NVIDIA driver{_installed_driver()} supports CUDA {'.'.join(map(str, supported))} at most, and CUDA "
        f"{cuda} is needed (install {oldest}; for a container, on its host)"
    ]


def _supported_cuda() -> tuple[int, int] | None:
    """Return the version of CUDA that the driver supports, or ``None`` if it does not tell."""
    version = ctypes.c_int()
    tell = getattr(ctypes.CDLL(DRIVER), "cuDriverGetVersion", None)
    if tell is None or tell(ctypes.byref(version)) or not version.value:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _installed_driver() -> str:
    """Return the version of the driver with a space before it, as far as the kernel tells."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return ""
    return f" {found[0]}" if found else ""
