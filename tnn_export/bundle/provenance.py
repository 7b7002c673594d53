"""Where a checkpoint comes from, for people to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.reading import read_json
from tnn_train.model.checkpoint import Checkpoint, load_checkpoint, refuse_run
from tnn_train.model.editing import EDITS
from tnn_train.run_files import BEST, RESULTS_FILE, RESULTS_SCHEMA

__all__ = ["is_untrained", "load_with_results", "untrained", "without_paths"]

_UNTRAINED = "untrained"
_KEPT = ("test_accuracy", "test_loss", "ece", "val_accuracy", "best_epoch", "parameters")


def load_with_results(folder: Path) -> Checkpoint:
    """Read a checkpoint, and into its metrics the results of the run, if it is the best one of a finished run.

    What was edited since has other results.

    Raises:
        UsageError: If the folder is a run.
        ArtifactError: If the checkpoint or the results cannot be read.
    """
    refuse_run(folder)
    checkpoint = load_checkpoint(folder)
    results = {} if EDITS in checkpoint.training else _results(folder)
    return dataclasses.replace(checkpoint, metrics={**checkpoint.metrics, **results})


def _results(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint.parent / RESULTS_FILE
    if checkpoint.name != BEST or not path.is_file():
        return {}
    results = read_json(path, "run", RESULTS_SCHEMA)
    return {name: results[name] for name in _KEPT if name in results}


def untrained(seed: int) -> dict[str, Any]:
    """Return what the checkpoint of a model that was never trained says of its training."""
    return {_UNTRAINED: True, "seed": seed}


def is_untrained(training: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint says that its model was never trained."""
    return training.get(_UNTRAINED) is True


def without_paths(value: Any) -> Any:
    """Return plain values with the last part alone of each absolute path: the rest is about a machine."""
    if isinstance(value, dict):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
