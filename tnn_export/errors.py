"""Errors of the export, in the tree of `tnn_runtime.errors`."""

from __future__ import annotations

from tnn_runtime.errors import TnnError

__all__ = ["ExportError"]


class ExportError(TnnError):
    """A model that cannot be exported."""
