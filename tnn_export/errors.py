"""Errors of the export, in the tree of `tnn_runtime.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.errors import TnnError

if TYPE_CHECKING:
    from tnn_export.proof.report import ParityReport

__all__ = ["ExportError", "ParityError"]


class ExportError(TnnError):
    """A model that cannot be exported."""


class ParityError(TnnError):
    """An exported artifact that does not give the outputs of eager PyTorch.

    Args:
        report: The whole comparison.
        consequence: What that means.

    Attributes:
        report: The whole comparison.
    """

    def __init__(
        self,
        report: ParityReport,
        consequence: str = "the exported model differs from eager PyTorch, so nothing was written",
    ) -> None:
        self.report = report
        super().__init__(f"{consequence}: {report.summary()}")
