"""Embeddings centred and scaled, so that one size of step and of learning rate suits every backbone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tnn_train.errors import TrainingError

__all__ = ["Scaling"]

_SHARE = 0.02
"""How much a batch counts in the running statistics: embeddings move while the backbone learns."""
_SMALLEST = 1e-12


class Scaling(nn.Module):
    """Running statistics of embeddings, and the affine map with them: ``(x - center) * factor``.

    The mean is 0 then, and the mean squared norm is ``size``. Similarities of centred embeddings are what similarity
    matching is defined with, since their matrix has the principal components of the data.

    Args:
        in_features: D.
        size: K, the mean squared norm.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("center", torch.zeros(in_features))
        self.register_buffer("spread", torch.tensor(float(size)))

    @property
    def factor(self) -> Tensor:
        """What centred embeddings are multiplied by."""
        return (self.size / self.spread.clamp_min(_SMALLEST)).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings ``x [N, D]`` centred and scaled."""
        return (x.to(self.center.dtype) - self.center) * self.factor

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """Move the statistics towards those of a batch; one with values that are no finite numbers does not count."""
        x = x.detach().to(self.center.dtype)
        if len(x) and bool(x.isfinite().all()):
            self.center += _SHARE * (x.mean(0) - self.center)
            self.spread += _SHARE * (_squares(x - self.center).mean() - self.spread)

    @torch.no_grad()
    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the statistics to those of all embeddings.

        Raises:
            TrainingError: If all embeddings are the same.
        """
        count, total, squares = 0, torch.zeros_like(self.center, dtype=torch.float64), 0.0
        for x, _ in batches:
            exact = x.to(total)
            count, total, squares = count + len(x), total + exact.sum(0), squares + float(_squares(exact).sum())
        center = total / count
        spread = squares / count - float(_squares(center))
        if not spread > _SMALLEST * squares / count:
            raise TrainingError(
                "all training images have the same embedding, so that there are no similarities to match; train with "
                "other images, or with another backbone"
            )
        self.center.copy_(center)
        self.spread.fill_(spread)


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(-1)
