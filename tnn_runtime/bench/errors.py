"""The error of a measurement that cannot be believed."""

from __future__ import annotations

from tnn_runtime.errors import TnnError

__all__ = ["BenchmarkError"]


class BenchmarkError(TnnError):
    """A measurement that gives no result: outputs that changed while they were timed, or a process that died."""
