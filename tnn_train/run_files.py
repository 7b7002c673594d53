"""The names in the folder of a run, for those that write it and those that read it."""

from __future__ import annotations

from tnn_runtime.bundle.storage import FolderKind

__all__ = ["BEST", "LAST", "METRICS_FILE", "REPORT_FILE", "RESULTS_FILE", "RESULTS_SCHEMA", "RUN", "TENSORBOARD"]

BEST = "best"
"""The checkpoint of the best epoch by validation."""

LAST = "last"
"""The checkpoint of the last step, from which a training is resumed."""

METRICS_FILE = "metrics.jsonl"
"""One line for each epoch."""

RESULTS_FILE = "results.json"
"""What came out, written when the training is finished."""

REPORT_FILE = "report.html"
"""Pages on the run, written after the training."""

TENSORBOARD = "tensorboard"
"""The folder of what TensorBoard reads, if it is asked for."""

RUN = FolderKind("run", LAST, (BEST, LAST, METRICS_FILE, RESULTS_FILE, REPORT_FILE, TENSORBOARD))

RESULTS_SCHEMA = 2
"""The ``schema_version`` of `RESULTS_FILE`. In version 1 the confusion was a matrix of all classes."""
