"""Losses and right answers of an epoch, as far as the host knows them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_train.errors import TrainingError
from tnn_train.training.shares import Share

__all__ = ["Tally", "diverged"]

_MOST_UNSEEN = 8
"""After how many batches the host looks at what a GPU has computed: each time, the GPU runs out of work."""


class _Unseen(NamedTuple):
    """A batch whose numbers are on the device.

    Args:
        place: Its epoch and its number in it, both counted from 1.
        numbers: Its mean loss and its right answers, float64 ``[2]``.
        share: What it counts for.
    """

    place: tuple[int, int]
    numbers: Tensor
    share: Share


class Tally:
    """Sums over the batches of an epoch, in one process.

    To read a number from a GPU is to wait until it has done all its work. So the numbers of a batch stay there, and
    `look` takes those of several batches over at once.

    Args:
        device: Where the numbers are computed.

    Attributes:
        sums: Of losses, right answers and images of the batches that were seen, float64 ``[3]``.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)
        self._most_unseen = 1 if device.type == "cpu" else _MOST_UNSEEN
        self._unseen: list[_Unseen] = []

    @property
    def is_seen(self) -> bool:
        """Whether the sums have all batches."""
        return not self._unseen

    @property
    def is_due(self) -> bool:
        """Whether so many batches are unseen that it is time to look."""
        return len(self._unseen) >= self._most_unseen

    def add(self, place: tuple[int, int], loss: Tensor, right: Tensor, share: Share) -> None:
        """Add a batch, unseen.

        Args:
            place: Its epoch and its number in it, both counted from 1.
            loss: Its mean loss, a scalar on the device.
            right: Its right answers, a scalar on the device.
            share: What it counts for.
        """
        self._unseen.append(_Unseen(place, torch.stack((loss.detach().double(), right.double())), share))

    def look(self) -> None:
        """Wait for the device, and add up the numbers of the batches that are unseen.

        Raises:
            TrainingError: If a loss is not finite.
        """
        if self.is_seen:
            return
        rows = torch.stack([batch.numbers for batch in self._unseen]).tolist()
        for (loss, right), ((epoch, batch), _, share) in zip(rows, self._unseen, strict=True):
            if not math.isfinite(loss):
                raise diverged(loss, f"epoch {epoch}, step {batch}")
            self.sums += torch.tensor([loss * share.loss_images, right, share.images], dtype=torch.float64)
        self._unseen.clear()


def diverged(loss: float, where: str) -> TrainingError:
    """Return the error for a loss that is not finite."""
    return TrainingError(
        f"the loss is {loss} at {where}; earlier checkpoints are kept; try a lower learning rate, or clip_norm "
        "(--clip-norm 1)"
    )
