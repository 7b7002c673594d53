"""What TensorBoard shows of a training, if it is asked for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command
from tnn_train.run_files import TENSORBOARD
from tnn_train.training.trainer import Trainer

__all__ = ["Logs", "open_logs"]

_logger = logging.getLogger(__name__)


class Logs:
    """Writes scalars over the steps of a training; files are made with the first epoch, when its folder stands.

    Args:
        folder: Where the event files go.
        trainer: Whose numbers are written.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self._folder, self._trainer = folder, trainer
        self._first = trainer.step
        self._losses: list[tuple[int, float]] = []
        self._writer: Any = None
        self._has_failed = False

    def step(self) -> None:
        """Take down the mean loss of the running epoch so far."""
        self._losses.append((self._trainer.step, self._trainer.mean_loss))

    def epoch(self) -> None:
        """Write the losses taken down, and the newest row of the history."""
        self._attempt(self._write)
        self._losses.clear()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._attempt(self._writer.close)

    def _write(self) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=self._first)
        for step, loss in self._losses:
            self._writer.add_scalar("step/loss", loss, step)
        for name, value in self._trainer.history[-1].items():
            self._writer.add_scalar(f"epoch/{name}", value, self._trainer.step)
        self._writer.flush()

    def _attempt(self, action: Callable[[], object]) -> None:
        """Write, or go on without where that failed once, as on a full disk."""
        if self._has_failed:
            return
        try:
            action()
        except OSError as error:
            self._has_failed = True
            _logger.warning(
                "no more is written to %s (%s); the training goes on without it", self._folder, error.strerror
            )


class _NoLogs(Logs):
    def step(self) -> None:
        pass

    def epoch(self) -> None:
        pass


@contextmanager
def open_logs(folder: Path, trainer: Trainer) -> Iterator[Logs]:
    """Yield the logs of a run folder, which are none unless the recipe asks for them.

    Raises:
        UsageError: If they are asked for and TensorBoard is not installed.
    """
    if not (trainer.config.tensorboard and trainer.processes.is_first):
        yield _NoLogs(folder, trainer)
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(f"TensorBoard is not installed; run: {install_command('tensorboard')}, or leave it out")
    logs = Logs(folder / TENSORBOARD, trainer)
    try:
        yield logs
    finally:
        logs.close()
