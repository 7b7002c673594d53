"""The loss of generalised learning vector quantisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tnn_train.heads.lvq.config import IDENTITY, SIGMOID, SWISH, LvqConfig

__all__ = ["TRANSFERS", "glvq_loss", "relative_differences"]

TRANSFERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    IDENTITY: lambda mu, beta: mu,
    SIGMOID: lambda mu, beta: torch.sigmoid(beta * mu),
    SWISH: lambda mu, beta: mu * torch.sigmoid(beta * mu),
}
"""What the relative difference may go through, by name."""

_TINY = 1e-12


def relative_differences(distances: Tensor) -> Tensor:
    """Return for each class ``(d+ - d-) / (d+ + d-)``, ``[N, C]``, -1 to 1: below 0 where the class is nearest.

    Args:
        distances: To the nearest prototype of each class, ``[N, C]``: d+ is that of the class, d- the smallest of the
            others.
    """
    best, second = distances.topk(2, dim=1, largest=False).values.chunk(2, dim=1)
    is_best = functional.one_hot(distances.argmin(1), distances.shape[1]).bool()
    others = torch.where(is_best, second, best)
    return (distances - others) / (distances + others).clamp_min(_TINY)


def glvq_loss(
    distances: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float, config: LvqConfig
) -> Tensor:
    """Return the mean of ``f((d+ - d-) / (d+ + d-) + margin)`` over a batch (Sato and Yamada 1996, NIPS 8).

    With shares of classes as targets, an image counts for each class by its share, as if it were of this class. Label
    smoothing gives all classes such shares, as in the cross-entropy. So do weights: what is summed is divided by the
    sum of the weights of the images, or with shares as targets by their number.

    Args:
        distances: To the nearest prototype of each class, ``[n, C]``.
        targets: Classes, int64 ``[n]``, or shares of classes, float ``[n, C]``.
        weight: How much images of each class count, ``[C]``; ``None`` for all alike.
        label_smoothing: The probability to spread over all classes.
        config: Says what f, its beta and the margin are.
    """
    count = distances.shape[1]
    is_blended = targets.ndim == 2
    shares = targets.to(distances) if is_blended else functional.one_hot(targets, count).to(distances)
    shares = (1 - label_smoothing) * shares + label_smoothing / count
    if weight is not None:
        shares = shares * weight
    total = len(targets) if weight is None or is_blended else weight[targets].sum()
    losses = TRANSFERS[config.transfer](relative_differences(distances) + config.margin, config.beta)
    return (shares * losses).sum() / total
