"""Errors of the export, in the tree of `tnn_runtime.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.errors import TnnError

if TYPE_CHECKING:
    from tnn_export.parity import ParityReport

__all__ = ["ExportError", "ParityError"]


class ExportError(TnnError):
    """A model that cannot be exported."""


class ParityError(TnnError):
    """An exported artifact that does not give the logits of eager PyTorch.

    Attributes:
        report: The whole comparison.
    """

    def __init__(self, report: ParityReport) -> None:
        self.report = report
        super().__init__(f"the exported model differs from eager PyTorch, so nothing was written: {report.summary()}")
