"""How strong the logit of a class has to be that was not trained, to stand beside the logits that were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError

__all__ = ["Company", "inserted"]


@dataclass(frozen=True)
class Company:
    """The logits that a new one stands beside.

    Args:
        logits: Of the classes that there are, ``[n, C]``.
        is_new: Which of the images are of the new class, ``[n]``.
    """

    logits: Tensor
    is_new: Tensor

    def loss(self, new: Tensor) -> float:
        """Return the cross-entropy between the new class and all others together, each class counting alike.

        Args:
            new: The new logit of each image, ``[n]``.
        """
        lead = new.double() - self.logits.double().logsumexp(1)
        share = 1 / (self.logits.shape[1] + 1)
        missed, taken = functional.softplus(-lead[self.is_new]), functional.softplus(lead[~self.is_new])
        return float(share * missed.mean() + (1 - share) * taken.mean())

    def gain(self, new: Tensor) -> float:
        """Return the factor that gives a new logit ``[n]`` the spread over the images that the others have on average.

        Raises:
            UsageError: If it is the same for all images.
        """
        spread = float(new.std())
        if not spread > 0:
            raise UsageError("the images of the new class have the embeddings of all others; give other images")
        return float(self.logits.std(0).mean()) / spread

    def bias(self, new: Tensor) -> float:
        """Return what to add to a new logit ``[n]`` for the least loss, which is convex in it."""
        from scipy.optimize import minimize_scalar

        lead = new.double() - self.logits.double().logsumexp(1)
        return float(
            minimize_scalar(lambda bias: self.loss(new + bias), bracket=(-float(lead.max()), -float(lead.min()))).x
        )


def inserted(rows: Tensor, row: Tensor, place: int) -> Tensor:
    """Return rows ``[n, ...]`` with one more, ``[...]``, before the row that was at ``place``."""
    return torch.cat([rows[:place], row.unsqueeze(0).to(rows), rows[place:]])
