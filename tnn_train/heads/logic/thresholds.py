"""From values of an embedding to bits: whether a value is above each of its thresholds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tnn_train.errors import TrainingError

__all__ = ["Thresholds", "distributive", "evenly_spaced", "sample"]

_BETWEEN = (3 - 5**0.5) / 2
"""Where between two values a threshold lies: in the golden section. In the middle, it would often be a value of a grid,
such as that of pixels, which other images have."""

_MOST_ROWS = 4096
"""Embeddings that thresholds are set from."""


class Thresholds(nn.Module):
    """Thresholds for each value: a bit says whether the value is above it.

    A bit has the gradient that ``sigmoid((x - threshold) / width)`` has, a straight-through estimator
    (Bengio et al., arXiv 1308.3432), so that a backbone before it and thresholds learn; its value is the bit itself.

    Args:
        size: D, the number of values.
        bits: B, thresholds for each of them.
        is_learned: Whether the thresholds are parameters.
    """

    values: Tensor
    widths: Tensor

    def __init__(self, size: int, bits: int, *, is_learned: bool) -> None:
        super().__init__()
        start = torch.linspace(-1, 1, bits + 2)[1:-1].repeat(size, 1)
        if is_learned:
            self.values = nn.Parameter(start)
        else:
            self.register_buffer("values", start)
        self.register_buffer("widths", torch.full((size, 1), 1 / (bits + 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return bits 0 and 1, float ``[N, D * B]``, of values ``[N, D]``."""
        above = x[:, :, None] - self.values
        if torch.is_grad_enabled() and above.requires_grad:
            return _Step.apply(above, self.widths).flatten(1)  # type: ignore[no-any-return]
        return (above > 0).flatten(1).to(x.dtype)

    @torch.no_grad()
    def set(self, rows: Tensor, *, is_even: bool) -> None:
        """Set the thresholds from embeddings ``[n, D]``, and how far the gradient of a bit reaches."""
        bits = self.values.shape[1]
        even = evenly_spaced(rows, bits)
        self.values.copy_(even if is_even else distributive(rows, bits))
        spread = rows.std(0, correction=0)
        self.widths.copy_(torch.where(spread > 0, spread, spread.mean())[:, None].clamp_min(1e-6) / (bits + 1))


class _Step(torch.autograd.Function):
    """1 above 0, else 0; with the gradient of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, above: Tensor, widths: Tensor) -> Tensor:
        ctx.save_for_backward(above, widths)
        return (above > 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        above, widths = ctx.saved_tensors
        share = torch.sigmoid(above / widths)
        return gradients[0] * share * (1 - share) / widths, None


def sample(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return embeddings ``[n, D]`` of the first batches, float32, enough to set thresholds from.

    Raises:
        TrainingError: If they are all the same.
    """
    rows: list[Tensor] = []
    for x, _ in batches:
        rows.append(x.detach().float())
        if sum(map(len, rows)) >= _MOST_ROWS:
            break
    embeddings = torch.cat(rows)
    if not bool((embeddings != embeddings[0]).any()):
        raise TrainingError(
            "all training images have the same embedding, so there is nothing to compare with thresholds; look at the "
            "images and at the backbone"
        )
    return embeddings


def evenly_spaced(rows: Tensor, bits: int) -> Tensor:
    """Return thresholds ``[D, B]`` evenly spaced between the smallest and the largest value of ``rows [n, D]``.

    Each is moved in between the two values that occur next to it, so that none lies on a value.
    """
    known = torch.unique(rows)
    wanted = torch.linspace(0, 1, bits + 2, device=rows.device)[1:-1] * (known[-1] - known[0]) + known[0]
    place = torch.searchsorted(known, wanted, right=True).clamp(1, len(known) - 1)
    return _between(known[place - 1], known[place]).repeat(rows.shape[1], 1)


def distributive(rows: Tensor, bits: int) -> Tensor:
    """Return thresholds ``[D, B]`` at equal shares of the distinct values of each column of ``rows [n, D]``.

    Each lies between two values. Of distinct values, since most pixels are background: quantiles of all would put most
    thresholds there. A value that is always the same gets those of `evenly_spaced`.
    """
    found = evenly_spaced(rows, bits)
    shares = torch.arange(1, bits + 1, device=rows.device) / (bits + 1)
    for number, column in enumerate(rows.T):
        known = torch.unique(column)
        if len(known) > 1:
            place = (shares * (len(known) - 1)).long().clamp_max(len(known) - 2)
            found[number] = _between(known[place], known[place + 1])
    return found


def _between(low: Tensor, high: Tensor) -> Tensor:
    return low + _BETWEEN * (high - low)
