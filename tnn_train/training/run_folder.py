"""The folder of a run: what is written there, when, and in which order."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tnn_runtime.bundle.outputs import refuse_among_images, refuse_unwritable
from tnn_runtime.bundle.storage import is_empty, refuse_existing, remove, stands, write_text
from tnn_runtime.errors import ArtifactError, OutputExistsError, UsageError
from tnn_train.data.config import DataConfig
from tnn_train.data.images import ImageSet, even_sample
from tnn_train.data.load import folder_of
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.model.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    load_checkpoint,
    load_trainer_state,
    save_checkpoint,
    versions,
)
from tnn_train.model.density import find_density
from tnn_train.model.exemplars import find_exemplars
from tnn_train.model.image_model import ImageModel
from tnn_train.run_files import BEST, LAST, METRICS_FILE, RUN
from tnn_train.training.results import Results, write_results
from tnn_train.training.trainer import Trainer

__all__ = ["RunFolder", "check_run_folder"]

UNFINISHED = "unfinished_val_accuracy"
"""The metric of a checkpoint that `Head.finish` has changed."""

_SECONDS_BETWEEN = 5.0
"""Epochs shorter than this, as those on embeddings are, are not saved each."""
_PARITY_SAMPLES, _PARITY_BYTES = 512, 16 << 20
_CALIBRATION_SAMPLES, _CALIBRATION_BYTES = 128, 8 << 20


class RunFolder:
    """Writes ``best``, ``last``, ``metrics.jsonl`` and ``results.json``, from the first process only.

    ``best`` is written before ``last``: a kill between the two leaves a ``last`` from which the same best epoch comes
    out again. Both are whole at any moment.

    Args:
        folder: The run folder; nothing is written, or removed, before there is a first checkpoint to save.
        trainer: Whose progress is written.
        is_resumed: Whether the folder holds this training already; what it holds otherwise is replaced.
    """

    def __init__(self, folder: Path, trainer: Trainer, *, is_resumed: bool) -> None:
        self.folder, self.trainer = folder, trainer
        self.is_begun = is_resumed
        self._samples, self._labels = _sample(trainer.data.val, _PARITY_SAMPLES, _PARITY_BYTES)
        self._calibration, _ = _sample(trainer.data.train, _CALIBRATION_SAMPLES, _CALIBRATION_BYTES)
        self._saved = -math.inf

    def save(self, *, is_urgent: bool) -> None:
        """Save the state of the training, unless the last save was a moment ago and this one is not urgent."""
        # Every process takes part in making the state.
        state = self.trainer.state()
        if not self.trainer.processes.is_first or not (is_urgent or time.monotonic() - self._saved >= _SECONDS_BETWEEN):
            return
        if not self.is_begun and self.folder.exists():
            strangers = RUN.strangers(self.folder)
            for path in self.folder.iterdir():
                if path.name not in strangers:
                    remove(path)
        self.is_begun = True
        trainer = self.trainer
        if trainer.best is not None:
            save_checkpoint(self.folder / BEST, self._checkpoint(trainer.best, trainer.best_row), overwrite=True)
            trainer.best = None
        row = trainer.history[-1] if trainer.history else {}
        save_checkpoint(self.folder / LAST, self._checkpoint(trainer.model, row), state, overwrite=True)
        self._write_metrics()
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Let the trainer go on from ``last``.

        Raises:
            UsageError: If it belongs to another training, or ``best`` was removed.
            ArtifactError: If it is damaged.
        """
        last, best = self.folder / LAST, self.folder / BEST
        try:
            self.trainer.restore(load_checkpoint(last).model, load_trainer_state(last), str(last))
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}, or train again with --overwrite; {best}, if it is whole, can be the start: --weights {best}"
            ) from error
        if self.trainer.history and not stands(best):
            raise UsageError(f"{self.folder} has lost its {BEST} and cannot be resumed; train again with --overwrite")
        self._write_metrics()

    def finished_best(self) -> Checkpoint:
        """Return the checkpoint of the best epoch, on the trainer's device, after `Head.finish`.

        Its metrics then have ``unfinished_val_accuracy``, the validation accuracy from before that.
        """
        trainer = self.trainer
        best = load_checkpoint(self.folder / BEST)
        model = best.model.to(trainer.device)
        if UNFINISHED in best.metrics or (val := trainer.finish(model)) is None:
            return best
        metrics = {**best.metrics, "val_loss": val.loss, "val_accuracy": val.accuracy}
        metrics[UNFINISHED] = best.metrics["val_accuracy"]
        best = dataclasses.replace(
            best, model=model, config=best.config.with_options(model.head.options), metrics=metrics
        )
        trainer.processes.wait()
        if trainer.processes.is_first:
            save_checkpoint(self.folder / BEST, best, overwrite=True)
        return best

    def finish(self, test: Evaluation, best: Mapping[str, Any]) -> None:
        """Write ``results.json``.

        Args:
            test: The best epoch on the test set.
            best: The metrics of its checkpoint.
        """
        trainer = self.trainer
        if not trainer.processes.is_first:
            return
        data = trainer.data
        seconds = sum(row["seconds"] for row in trainer.history)
        seen = sum(row["seconds"] * row["images_per_second"] for row in trainer.history)
        results = Results(
            config=self._config(),
            class_names=data.class_names,
            images={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            ece=test.calibration().ece,
            confusion=tuple(map(tuple, test.confusions.tolist())),
            best_epoch=best["epoch"],
            val_accuracy=best["val_accuracy"],
            unfinished_val_accuracy=best.get(UNFINISHED),
            level_accuracies=test.level_accuracies(data.class_names),
            parameters=_num_parameters(trainer.model),
            seconds=seconds,
            images_per_second=seen / seconds,
            device=_device_name(trainer.device),
            threads=torch.get_num_threads(),
            processes=trainer.processes.count,
            versions=versions(),
            unusable_files=len(data.unusable),
            unusable={str(path): why for path, why in data.unusable.items()},
            normalization={
                "mean": data.preprocessing.mean,
                "std": data.preprocessing.std,
                "origin": data.normalization,
            },
        )
        write_results(self.folder, results)

    def look_at_training_images(self) -> None:
        """Put into the best checkpoint where embeddings of training images lie, and exemplars if they are wanted."""
        count, train = self.trainer.config.exemplars, self.trainer.data.train
        if not self.trainer.processes.is_first:
            return

        def read(places: NDArray[np.int64]) -> NDArray[np.uint8]:
            return np.stack([train.decoded(place) for place in places.tolist()])

        best, found = load_checkpoint(self.folder / BEST), None
        model = best.model.to(self.trainer.device)
        density = find_density(model, best.preprocessing, read, train.labels)
        if count:
            found = find_exemplars(
                model,
                best.preprocessing,
                read,
                train.labels,
                best.class_names,
                count,
                are_those_of_training=True,
            )
        completed = dataclasses.replace(best, exemplars=found, density=density)
        save_checkpoint(self.folder / BEST, completed, overwrite=True)

    def _write_metrics(self) -> None:
        rows = "".join(json.dumps(row) + "\n" for row in self.trainer.history)
        if self.trainer.processes.is_first:
            write_text(self.folder / METRICS_FILE, rows)

    def _checkpoint(self, model: ImageModel, row: dict[str, Any]) -> Checkpoint:
        trainer = self.trainer
        model = model.in_final_form()
        return Checkpoint(
            model,
            trainer.model_config.with_options(model.head.options),
            trainer.data.preprocessing,
            trainer.data.class_names,
            self._samples,
            row,
            self._config(),
            self._labels,
            self._calibration,
        )

    def _config(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "data": dataclasses.asdict(trainer.data.config),
            "model": dataclasses.asdict(trainer.model_config),
            "train": dataclasses.asdict(trainer.config),
        }


def check_run_folder(folder: Path, *, overwrite: bool, resume: bool, data: DataConfig) -> None:
    """Make sure that a training may be written to ``folder``, or resumed from it.

    Args:
        folder: The run folder.
        overwrite: Whether a run that it holds may be replaced.
        resume: Whether that run is to go on.
        data: Where the images come from.

    Raises:
        OutputExistsError: If it exists and is neither to be overwritten nor resumed, or has files that are no part of
            a run.
        UsageError: If it is to be both, there is nothing to resume, or it lies among the images.
    """
    if resume and overwrite:
        raise UsageError("got both --resume and --overwrite; give the one that you mean")
    refuse_among_images(folder, folder_of(data))
    if not resume and not overwrite and stands(folder / LAST):
        raise OutputExistsError(
            f"{folder} already exists; pass --resume (resume=True) to go on with its training, --overwrite "
            "(overwrite=True) to replace it, or choose another output folder"
        )
    if not resume:
        if not folder.is_dir() or not is_empty(folder):
            kind = RUN if (folder / LAST).exists() else dataclasses.replace(RUN, marker=BEST)
            refuse_existing(folder, kind, overwrite=overwrite, in_place=True)
        for checkpoint in (folder / BEST, folder / LAST):
            if checkpoint.exists():
                refuse_existing(checkpoint, CHECKPOINT, overwrite=overwrite)
    elif not stands(folder / LAST):
        raise UsageError(f"{folder} has no {LAST} to resume from; start again, with --overwrite if the folder exists")
    if folder.is_dir():
        refuse_unwritable(folder / LAST, "another output folder")


def _sample(images: ImageSet, count: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return up to ``count`` images and their labels, spread evenly over the set, of up to ``size`` bytes."""
    count = max(1, min(count, size // math.prod(images.preprocessing.shape)))
    return images.sample(count), images.labels[even_sample(len(images), count)]


def _num_parameters(model: ImageModel) -> int:
    """Return how many parameters compute the logits."""
    return sum(parameter.numel() for part in (model.backbone, model.head) for parameter in part.parameters())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
