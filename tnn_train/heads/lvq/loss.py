"""The loss of generalised learning vector quantisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tnn_train.heads.lvq.config import IDENTITY, SIGMOID, SWISH, LvqConfig

__all__ = ["TRANSFERS", "cooling", "glvq_loss", "relative_differences"]

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
    shares = _shares(distances, targets, weight, label_smoothing)
    total = len(targets) if weight is None or targets.ndim == 2 else weight[targets].sum()
    losses = TRANSFERS[config.transfer](relative_differences(distances) + config.margin, config.beta)
    return (shares * losses).sum() / total


@torch.no_grad()
def cooling(logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """Return what to add to the logarithm of the temperature for a lower cross-entropy: a step of -1 to 1.

    It is Newton's, ``-g / (h + |g|)`` with the slope g of the cross-entropy and the variance h of the logits under the
    probabilities, which is its curvature where g is 0. It does not depend on the scale of anything.

    Args:
        logits: float32 ``[n, C]``.
        targets: As for `glvq_loss`.
        weight: As for `glvq_loss`.
        label_smoothing: As for `glvq_loss`.
    """
    shares = _shares(logits, targets, weight, label_smoothing)
    each = shares.sum(1)
    probabilities = logits.softmax(1)
    means = (probabilities * logits).sum(1, keepdim=True)
    slope = ((shares * logits).sum(1) - each * means.squeeze(1)).sum()
    variance = (each * (probabilities * (logits - means).square()).sum(1)).sum()
    return -slope / (variance + slope.abs()).clamp_min(_TINY)


def _shares(values: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """Return how much each image counts for each class, ``[n, C]``."""
    count = values.shape[1]
    shares = targets.to(values) if targets.ndim == 2 else functional.one_hot(targets, count).to(values)
    shares = (1 - label_smoothing) * shares + label_smoothing / count
    return shares if weight is None else shares * weight
