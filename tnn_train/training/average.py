"""A moving average of the weights of a model in training."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["MovingAverage"]


class MovingAverage(AveragedModel):
    """An exponential moving average, which forgets faster at the start, so that random weights do not linger.

    Its share of the newest weights is known on the host, so that no update waits for the device.

    Args:
        learner: What is averaged, its buffers included; the average starts as a copy.
        decay: The share of the average that stays at each update, 0 to below 1.
    """

    def __init__(self, learner: nn.Module, decay: float) -> None:
        super().__init__(learner, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the weights and buffers of ``model``."""
        count = int(self.n_averaged)
        share = 1 - min(self._decay, (1 + count) / (10 + count))
        ours, theirs = (itertools.chain(module.parameters(), module.buffers()) for module in (self.module, model))
        for old, new in zip(ours, theirs, strict=True):
            if count and old.is_floating_point():
                old += (new - old) * share
            else:
                old.copy_(new)
        self.n_averaged += 1
