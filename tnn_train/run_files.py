"""The names in the folder of a run, for those that write it and those that read it."""

from __future__ import annotations

__all__ = ["BEST", "LAST", "METRICS_FILE", "RESULTS_FILE", "RESULTS_SCHEMA"]

BEST = "best"
"""The checkpoint of the best epoch by validation."""

LAST = "last"
"""The checkpoint of the last step, from which a training is resumed."""

METRICS_FILE = "metrics.jsonl"
"""One line for each epoch."""

RESULTS_FILE = "results.json"
"""What came out, written when the training is finished."""

RESULTS_SCHEMA = 2
"""The ``schema_version`` of `RESULTS_FILE`. In version 1 the confusion was a matrix of all classes."""
