"""The min-max objective of similarity matching, as a loss whose gradients are its Hebbian and anti-Hebbian rules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tnn_train.heads.matching.config import WEIGHT, WHITEN

__all__ = ["encoder_loss", "lateral_loss", "shares_of_classes", "weights_of_images"]


def encoder_loss(encoder: Tensor, inputs: Tensor, values: Tensor, weights: Tensor, regularization: str) -> Tensor:
    """Return a loss of an encoder W whose gradient is the Hebbian rule.

    It is half of the min-max objective of Pehlevan, Sengupta & Chklovskii 2018 (arXiv 1703.07914): ``|W|^2 - 2 y W x``,
    with the gradient ``2 (W - y x)``. Whitening puts ``|W x|^2`` in place of ``|W|^2``, which matches the similarities
    of whitened inputs.

    Args:
        encoder: W, ``[K, D]``.
        inputs: x, ``[N, D]``.
        values: y, the settled activities, ``[N, K]``, without gradients.
        weights: How much each image counts, ``[N]``.
        regularization: What keeps W from growing.
    """
    drive = functional.linear(inputs, encoder)
    loss = -2 * _mean(drive * values, weights)
    if regularization == WEIGHT:
        loss = loss + encoder.square().sum()
    elif regularization == WHITEN:
        loss = loss + _mean(drive.square(), weights)
    return loss


def lateral_loss(lateral: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Return a loss of the lateral weights M whose gradient is the anti-Hebbian rule.

    The objective is a maximum over M. Half of it, with the other sign, is ``|M|^2 / 2 - y M y``, with the gradient
    ``M - y y``: a descent is the ascent that the rule makes.

    Args:
        lateral: M, ``[K, K]``.
        values: y, as for `encoder_loss`.
        weights: As for `encoder_loss`.
    """
    return lateral.square().sum() / 2 - _mean(functional.linear(values, lateral) * values, weights)


def weights_of_images(targets: Tensor, weight: Tensor | None) -> Tensor:
    """Return how much each image counts in the mean loss of a batch, ``[N]``, as `tnn_train.heads.Head.loss` says.

    Args:
        targets: Classes ``[N]``, or shares of classes ``[N, C]``.
        weight: How much images of each class count, ``[C]``; ``None`` for all alike.
    """
    if weight is None:
        return torch.full((len(targets),), 1 / len(targets), device=targets.device)
    if targets.is_floating_point():
        return targets @ weight / len(targets)
    return weight[targets] / weight[targets].sum()


def shares_of_classes(targets: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return the share of each class in each image, ``[N, C]``, smoothed as for the cross-entropy."""
    shares = targets if targets.is_floating_point() else functional.one_hot(targets, num_classes).float()
    return shares * (1 - label_smoothing) + label_smoothing / num_classes


def _mean(terms: Tensor, weights: Tensor) -> Tensor:
    return (terms.sum(1) * weights).sum()
