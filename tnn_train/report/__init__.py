"""Pages to look at after a training: one HTML file each, with its pictures inside."""

from __future__ import annotations

from tnn_train.report.summary import RunSummary
from tnn_train.report.write import write_report

__all__ = ["RunSummary", "write_report"]
