"""The memory of this process and of its GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tnn_runtime.backends.devices import parse_device

__all__ = ["device_bytes", "peak_bytes", "resident_bytes"]

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Return the memory that this process holds now, or where that is not told, the most that it has held."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return _status("VmHWM")


def device_bytes(device: str) -> int | None:
    """Return the memory in use on the GPU of ``device``, by all processes; None for the CPU, or if nobody tells.

    Args:
        device: As in `Classifier.load`.
    """
    wanted = parse_device(device)
    if wanted.is_cpu:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = wanted.index
    gpu = visible[index].strip() if index < len(visible) and visible[index] else str(index)
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", gpu]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return int(result.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _status(name: str) -> int:
    if _STATUS.exists():
        found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
