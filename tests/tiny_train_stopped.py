"""`tiny_train`, whose second process gets SIGTERM in the second batch of the second epoch."""

from __future__ import annotations

import os
import signal
import sys

import torch
from tiny_train import main

from tnn_train.training.trainer import Trainer

learn = Trainer._learn


def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
    learn(trainer, *batch)
    if (trainer.epoch, trainer.batch, trainer.processes.rank) == (1, 2, 1):
        os.kill(os.getpid(), signal.SIGTERM)


Trainer._learn = interrupted  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
