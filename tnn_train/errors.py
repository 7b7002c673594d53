"""Errors of training, in the tree of `tnn_runtime.errors`."""

from __future__ import annotations

from tnn_runtime.errors import TnnError, UsageError

__all__ = ["DataError", "NoMapsError", "TrainingError", "UnfoldingError", "WorkerError"]


class DataError(TnnError):
    """A data set that is missing, empty, or cannot be split."""


class NoMapsError(UsageError):
    """A backbone whose embedding is not the mean of a map over all places."""


class TrainingError(TnnError):
    """Training that cannot go on."""


class UnfoldingError(TnnError):
    """An unfolded head that does not give the predictions of its linear layer."""


class WorkerError(TnnError):
    """Worker processes for images that this machine does not let work: for want of shared memory, or of open files."""
