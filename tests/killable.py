"""A training in a process of its own that can be killed; imported by a fork server, so that it starts at once."""

from __future__ import annotations

from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from conftest import TinyNet  # noqa: F401, registers the backbone

from tnn_train import ModelConfig, TrainConfig, TverskyConfig, load_data, train
from tnn_train.trainer import Trainer

RECIPE = TrainConfig(
    epochs=6, batch_size=4, augment=("crop", "flip", "mixup"), save_steps=1, ema_decay=0.9, accumulate=2, threads=1
)
MODEL = ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=8, prototype_init="class-means"))


def run(photos: Path, out: Path, steps: Synchronized[int], *, resume: bool) -> None:
    """Train, and count the batches of this process in ``steps``."""
    torch.set_num_threads(1)
    learn = Trainer._learn

    def counted(trainer: Trainer, *batch: torch.Tensor) -> None:
        learn(trainer, *batch)
        steps.value += 1

    Trainer._learn = counted  # type: ignore[method-assign]
    train(load_data(photos), out, MODEL, RECIPE, resume=resume)
