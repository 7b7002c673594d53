"""Memory that this process does not need any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc

__all__ = ["return_memory"]


def return_memory() -> None:
    """Return memory to the system that was freed, where the C library can (glibc).

    It keeps what is freed for later, which after the exchange of a model can be several times the memory of the model.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
