"""Faults of the machine that stop the worker processes of a data loader, told as what they are."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tnn_runtime.images.files import reason
from tnn_train.errors import WorkerError

__all__ = ["deaths_told", "worker_fault"]

_WITHOUT = "decode without them, --workers 0 (workers=0)"
_FAULTS = {
    r"too many open files|ancdata": (
        "have too many files open",
        f"raise the limit, ulimit -n 65536, or {_WITHOUT}",
    ),
    r"shared memory|\bshm\b|bus error|no space left on device": (
        "have too little shared memory",
        f"give them more, as docker run --shm-size=2g does, or {_WITHOUT}",
    ),
    r"cannot allocate memory|resource temporarily unavailable": (
        "cannot be started",
        f"use fewer, --workers 1 (workers=1), or {_WITHOUT}",
    ),
    r"dataloader worker .* (killed by signal|exited unexpectedly)": (
        "were ended by the system, most likely for want of memory or of shared memory",
        f"give them more, as docker run --shm-size=2g does, or {_WITHOUT}",
    ),
}
"""What errors of loaders and their workers say, in order of preference, what it means, and what to do."""

_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EAGAIN)


def worker_fault(error: Exception) -> WorkerError | None:
    """Return the fault of this machine that an error of a loader, or of a worker of it, tells of; ``None`` if of none.

    Args:
        error: What was raised.
    """
    if isinstance(error, OSError) and error.errno not in _OF_THE_SYSTEM:
        return None
    lines = str(error).strip().splitlines()
    text = reason(error) if len(lines) < 2 else lines[-1].strip()  # torch puts the traceback of a worker first
    for pattern, (what, remedy) in _FAULTS.items():
        if re.search(pattern, str(error), re.IGNORECASE):
            return WorkerError(f"the processes that decode images {what} ({text[:200]}); {remedy}")
    return None


@contextmanager
def deaths_told() -> Iterator[None]:
    """Tell of workers that died: torch raises an error for it in whatever line the program is.

    Raises:
        WorkerError: If one did.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker") and (fault := worker_fault(error)) is not None:
            raise fault from error
        raise
