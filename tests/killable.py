"""A training in a process of its own that can be killed; imported by a fork server, so that it starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from conftest import TinyNet  # noqa: F401, registers the backbone
from killing import kill_before

from tnn_train import ModelConfig, TrainConfig, TverskyConfig, load_data, train
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


def run(photos: Path, out: Path, moment: Moment | None = None, *, resume: bool = False) -> None:
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
