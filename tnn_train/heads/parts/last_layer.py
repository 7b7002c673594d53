"""The last layer of a parts head, fitted alone: a convex problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LastLayer", "fit_last_layer"]

_MOST_STEPS = 1000
_STEADY = 1e-7


@dataclass(frozen=True)
class LastLayer:
    """A linear layer from similarities ``[N, P]`` to logits ``[N, C]``.

    Args:
        weight: ``[C, P]``.
        bias: ``[C]``; ``None`` for none.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, similarities: Tensor) -> Tensor:
        """Return logits."""
        bias = None if self.bias is None else self.bias.to(similarities)
        return functional.linear(similarities, self.weight.to(similarities), bias)


def fit_last_layer(
    similarities: Tensor, labels: Tensor, start: LastLayer, towards: Tensor, strength: float, *, is_positive: bool
) -> LastLayer:
    """Return the layer with the least cross-entropy plus ``strength * sum(|weight - towards|)``.

    Solved by accelerated proximal gradients (Beck & Teboulle 2009, FISTA) that restart where they overshoot (O'Donoghue
    & Candès 2015), in float64. Weights that are to be 0 become exactly 0.

    Args:
        similarities: Of the training images, ``[N, P]``.
        labels: Their classes, int64 ``[N]``.
        start: Where to begin.
        towards: What weights are drawn to, ``[C, P]``.
        strength: How strongly, at least 0.
        is_positive: Whether weights are at least 0.
    """
    s = similarities.double()
    middle = torch.zeros_like(s[0]) if start.bias is None else s.mean(0)
    s, aim = s - middle, towards.double()
    # The Hessian of the cross-entropy is at most that of half the squares of the logits.
    curvature = 0.5 * float(torch.linalg.eigvalsh(s.T @ s / len(s))[-1])
    step = 1 / max(curvature, 1e-12)
    weight = start.weight.double()
    bias = None if start.bias is None else start.bias.double() + weight @ middle
    ahead, ahead_bias, pace, before = weight, bias, 1.0, math.inf
    for _ in range(_MOST_STEPS):
        wrong = torch.softmax(functional.linear(s, ahead, ahead_bias), 1)
        wrong[torch.arange(len(s)), labels] -= 1
        moved = ahead - step * (wrong.T @ s) / len(s) - aim
        new = aim + moved.sign() * (moved.abs() - step * strength).clamp_min(0)
        new = new.clamp_min(0) if is_positive else new
        # Without the mean of each similarity, the bias is a problem of its own, whose Hessian is at most 1/2.
        new_bias = None if ahead_bias is None else ahead_bias - 2 * wrong.mean(0)
        loss = functional.cross_entropy(functional.linear(s, new, new_bias), labels)
        now = float(loss + strength * (new - aim).abs().sum())
        if now > before:
            if pace == 1:
                break
            ahead, ahead_bias, pace = weight, bias, 1.0
            continue
        following = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        push = (pace - 1) / following
        ahead = new + push * (new - weight)
        ahead_bias = None if new_bias is None or bias is None else new_bias + push * (new_bias - bias)
        weight, bias, pace = new, new_bias, following
        if before - now <= _STEADY * max(abs(now), _STEADY):
            break
        before = now
    if bias is None:
        return LastLayer(weight, None)
    bias = bias - weight @ middle
    # What all logits have in common says nothing.
    return LastLayer(weight, bias - bias.mean())
