"""How many CPU cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many CPU cores this process may use, by its affinity and by the CPU quota of its control groups.

    Containers are usually limited by a quota: they see all cores of the machine, and are halted for the rest of each
    period when more threads than the quota have used it up. A quota of 2.5 cores counts as 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the CPU quota, in cores, of each control group that this process is in, and of those around it."""
    try:
        groups = [line.split(":", 2) for line in _MEMBERSHIP.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        inside = Path(path.lstrip("/"))
        for folder in (root / inside, *(root / parent for parent in inside.parents)):
            quota, period = _version_2(folder) if not controllers else _version_1(folder)
            if quota > 0 and period > 0:
                yield quota / period


def _version_2(folder: Path) -> tuple[int, int]:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _number(quota), _number(period)


def _version_1(folder: Path) -> tuple[int, int]:
    return _number(_read(folder / "cpu.cfs_quota_us")), _number(_read(folder / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    """Return a number, or -1 for ``max`` and for what cannot be read: no limit."""
    return int(text) if text.isdigit() else -1
