"""What a reader needs to know about the machine that was measured, and its clock while it was."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from tnn_runtime.queue.cores import usable_cores

__all__ = ["Clock", "machine", "thread_settings"]

_CPUS = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_SETTINGS = re.compile(r"(OMP|KMP|GOMP|MKL|OPENBLAS|ORT|CUDA|NVIDIA)_[A-Z_]+")


def machine() -> dict[str, Any]:
    """Return a description of this machine; what it does not tell is ``"unknown"``."""
    info = _read(_CPUINFO)
    model = re.search(r"^model name\s*:\s*(.*)$", info, flags=re.MULTILINE)
    governors = {_read(path) for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "virtual": bool(re.search(r"^flags\s*:.*\bhypervisor\b", info, flags=re.MULTILINE)),
        "governor": " ".join(sorted(governors)) or "unknown",
        "system": platform.system(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def thread_settings() -> dict[str, Any]:
    """Return the cores that this process may use, and the environment variables that threads listen to."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {
        "affinity": cores,
        "environment": {name: value for name, value in sorted(os.environ.items()) if _SETTINGS.fullmatch(name)},
    }


class Clock:
    """Reads the clock of the usable cores now and then; most virtual machines do not tell it, or a constant."""

    def __init__(self) -> None:
        self._mhz: list[float] = []

    def read(self) -> None:
        """Read all clocks once, which takes up to milliseconds: do it outside what is timed."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        found = [_read(_CPUS / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
        if any(found):
            self._mhz += [float(value) / 1e3 for value in found if value]
        else:
            self._mhz += [
                float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read(_CPUINFO), flags=re.MULTILINE)
            ]

    def summary(self) -> dict[str, float] | None:
        """Return ``min``, ``mean`` and ``max`` in MHz, or None where no clock can be read."""
        if not self._mhz:
            return None
        mhz = np.array(self._mhz)
        return {"min": float(mhz.min()), "mean": float(mhz.mean()), "max": float(mhz.max())}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
