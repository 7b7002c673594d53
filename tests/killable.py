"""Trainings in processes of their own that end before their time."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import TinyNet  # noqa: F401, registers the backbone
from killing import kill_before

from tnn_train import ModelConfig, TrainConfig, TverskyConfig, load_checkpoint, load_data, save_checkpoint, train
from tnn_train.__main__ import main
from tnn_train.training.run_folder import RunFolder
from tnn_train.training.trainer import Trainer

RECIPE = TrainConfig(
    epochs=6, batch_size=4, augment=("crop", "flip", "mixup"), save_steps=1, ema_decay=0.9, accumulate=2, threads=1
)
MODEL = ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=8, prototype_init="class-means"))


class Moment(NamedTuple):
    """When a training is killed.

    Args:
        step: The batch, counted over all epochs, that is still learnt.
        operation: How many operations on files follow it.
    """

    step: int
    operation: int


def run(photos: Path, out: Path, moment: Moment | None, resume: bool) -> None:
    """Train, up to a moment."""
    torch.set_num_threads(1)
    data = load_data(photos)
    if moment is not None:
        start = kill_before(moment.operation, out / "last")
        learn = Trainer._learn

        def counted(trainer: Trainer, *batch: torch.Tensor) -> None:
            learn(trainer, *batch)
            if trainer.step >= moment.step:
                start()

        Trainer._learn = counted  # type: ignore[method-assign]
    train(data, out, MODEL, RECIPE, resume=resume)


def stopped(arguments: Sequence[str]) -> int:
    """Run ``tnn-train``, whose second process gets SIGTERM in the second batch of the second epoch."""
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
        learn(trainer, *batch)
        if (trainer.epoch, trainer.batch, trainer.processes.rank) == (1, 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._learn = interrupted  # type: ignore[method-assign]
    return main(arguments)


def on_a_small_disk(arguments: Sequence[str]) -> int:
    """Run ``tnn-train``, for whose third checkpoint there is no room: a limit on the size of files."""
    save, count = RunFolder.save, 0

    def limited(run: RunFolder, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        save(run, **options)

    RunFolder.save = limited  # type: ignore[method-assign]
    return main(arguments)


def save_again(folder: Path) -> None:
    """Replace a checkpoint, killed before each of the operations on files that it takes; print how many there are."""
    loaded = load_checkpoint(folder)
    for operation in range(1000):
        if (child := os.fork()) == 0:
            kill_before(operation, folder)()
            save_checkpoint(folder, loaded, {"epoch": 1}, overwrite=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        load_checkpoint(folder)
        if not os.WIFSIGNALED(status):
            break
    print(operation)
