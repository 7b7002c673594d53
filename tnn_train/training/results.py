"""Run folders as they are read back: ``results.json`` and ``metrics.jsonl``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.reading import read_json
from tnn_runtime.bundle.storage import write_json
from tnn_runtime.errors import ArtifactError
from tnn_train.run_files import LAST, METRICS_FILE, RESULTS_FILE, RESULTS_SCHEMA
from tnn_train.training.identity import INCIDENTAL_DATA
from tnn_train.training.recipe import INCIDENTAL
from tnn_train.training.settings import flatten

__all__ = ["SEEDS", "Results", "Run", "read_run", "write_results"]

SEEDS = ("data.seed", "train.seed")
_IGNORED = {*SEEDS, *(f"data.{name}" for name in INCIDENTAL_DATA), *(f"train.{name}" for name in INCIDENTAL)}


@dataclass(frozen=True)
class Results:
    """The content of ``results.json``.

    Args:
        config: The sections ``data``, ``model`` and ``train``.
        class_names: One name for each class.
        images: How many are in ``train``, ``val`` and ``test``.
        test_accuracy: Of the best epoch, 0 to 1.
        test_loss: Mean cross-entropy in nats.
        ece: Expected calibration error on the test set, 0 to 1.
        confusion: Triples ``(right class, predicted class, count)`` on the test set, for each pair that occurs.
        best_epoch: The number of the best epoch by validation.
        val_accuracy: Its validation accuracy, 0 to 1.
        parameters: How many the model has.
        seconds: Time of all epochs, without validation.
        images_per_second: Training images in that time; or embeddings, with a frozen backbone.
        device: The device's name.
        threads: CPU threads of each process.
        processes: How many trained together.
        versions: Of Python and of packages.
        unusable_files: How many files of the data were left out because they cannot be used.
        unusable: What is wrong with each of them, by its path.
        normalization: The ``mean`` and ``std`` that images are normalised with, and their ``origin`` in words; empty in
            runs of versions that did not tell.
        unfinished_val_accuracy: The validation accuracy before the head set what follows from all training images,
            such as prototypes that become patches of them; ``None`` for heads that do not.
        level_accuracies: The test accuracy at each level above the classes, the top first, where their names are paths
            such as ``animal/cat``; else none.
    """

    config: dict[str, Any]
    class_names: tuple[str, ...]
    images: dict[str, int]
    test_accuracy: float
    test_loss: float
    ece: float
    confusion: tuple[tuple[int, int, int], ...]
    best_epoch: int
    val_accuracy: float
    parameters: int
    seconds: float
    images_per_second: float
    device: str
    threads: int
    processes: int
    versions: dict[str, str]
    unusable_files: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    normalization: dict[str, Any] = field(default_factory=dict)
    unfinished_val_accuracy: float | None = None
    level_accuracies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        folder: Where it lies.
        results: The content of ``results.json``.
        history: One dictionary for each epoch, the content of ``metrics.jsonl``.
    """

    folder: Path
    results: Results
    history: tuple[dict[str, Any], ...]

    @property
    def seed(self) -> tuple[Any, ...]:
        """The seeds of the data and of the training."""
        settings = flatten(self.results.config)
        return tuple(settings.get(name) for name in SEEDS)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that shape the result but the seeds, flat, without those of heads that the model lacks."""
        return {name: value for name, value in flatten(self.results.config).items() if name not in _IGNORED}


def write_results(folder: Path, results: Results) -> None:
    """Write ``results.json`` into a run folder."""
    write_json(folder / RESULTS_FILE, {"schema_version": RESULTS_SCHEMA, **dataclasses.asdict(results)})


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ArtifactError: If it is none, its training was not finished, or a file cannot be read.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        if (folder / METRICS_FILE).exists() or (folder / LAST).exists():
            raise ArtifactError(
                f"{folder} has no {RESULTS_FILE}: its training was not finished; repeat its command with --resume, or "
                "leave it out"
            )
        raise ArtifactError(f"{folder} is not a run: it has no {RESULTS_FILE}; give folders that tnn-train has made")
    raw = read_json(path, "run", RESULTS_SCHEMA)
    version = raw.pop("schema_version")
    try:
        if version == 1 and "confusion" in raw:
            raw["confusion"] = _triples(raw["confusion"])
        results = decode(Results, raw, "results")
    except TypeError as error:
        raise ArtifactError(f"{path} is not what tnn-train writes ({error}); copy the run again") from error
    return Run(folder, results, _read_history(folder / METRICS_FILE))


def _triples(matrix: Any) -> list[list[int]]:
    """Return the confusion of a matrix, as results of version 1 have it."""
    return [[right, place, count] for right, row in enumerate(matrix) for place, count in enumerate(row) if count]


def _read_history(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        rows = tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as lines of JSON ({error}); copy the run again") from error
    if not rows or not all(isinstance(row, dict) and {"epoch", "val_accuracy"} <= set(row) for row in rows):
        raise ArtifactError(f"{path} lacks epochs with their val_accuracy; copy the run again")
    return rows
