"""Layers of gates with two inputs: relaxed in training, discrete in evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.logic.config import RAW

__all__ = ["PASS", "GateLayer", "connections"]

PASS = 0b1100
"""The truth table of the gate that passes its first input on."""

_CORNERS = torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
"""The monomials 1, a, b, ab at the inputs ``ab`` = 00, 01, 10, 11, a row each."""

_MONOMIALS = torch.linalg.inv(_CORNERS.double()).round().float()
"""From the values at these inputs to the polynomial through them."""

_TABLES = (torch.arange(16)[:, None] >> torch.arange(4) & 1).float()
"""The values of each of the 16 functions at these inputs: bit k of the number is that at the k-th one."""

_WALSH = torch.tensor([[1.0, -1, -1, 1], [0, 2, 0, -2], [0, 0, 2, -2], [0, 0, 0, 4]])
"""From coefficients of 1, A, B, AB, where A = 2a - 1 and B = 2b - 1, to those of 1, a, b, ab."""


class GateLayer(nn.Module):
    """W gates, each with two of the values before it as inputs.

    In training a gate is a polynomial ``c0 + c1 a + c2 b + c3 ab`` of its inputs, 0 to 1. ``"raw"`` gates learn 16
    scores, whose softmax gives the expected value of the 16 Boolean functions (arXiv 2210.08277, section 3). ``"warp"``
    gates learn the polynomial of a logit in the Walsh-Hadamard basis (arXiv 2602.03527). In evaluation, a raw gate is
    the function with the largest score, and a warp gate is on where its logit is above 0.

    Args:
        left: The first input of each gate, int64 ``[W]``.
        right: The second one.
        parametrization: ``"raw"`` or ``"warp"``.
        residual: The probability of passing the first input on, at the start; 0 for a start at random.
    """

    left: Tensor
    right: Tensor

    def __init__(self, left: Tensor, right: Tensor, parametrization: str, residual: float) -> None:
        super().__init__()
        self.is_raw = parametrization == RAW
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.scores = nn.Parameter(torch.zeros(16 if self.is_raw else 4, len(left)))
        if not residual:
            nn.init.normal_(self.scores)
        elif self.is_raw:
            nn.init.constant_(self.scores[PASS], math.log(15 * residual / (1 - residual)))
        else:
            nn.init.constant_(self.scores[1], math.log(residual / (1 - residual)))

    def tables(self) -> Tensor:
        """Return the truth table of each discrete gate, int64 ``[W]``: bit ``2a + b`` is the value at ``a, b``."""
        if self.is_raw:
            return self.scores.argmax(0)
        at_corners = _CORNERS.to(self.scores) @ (_WALSH.to(self.scores) @ self.scores)
        return ((at_corners > 0) << torch.arange(4, device=self.scores.device)[:, None]).sum(0)

    def forward(self, h: Tensor) -> Tensor:
        """Return the values of the gates, ``[W, N]``, of the values before them, ``[I, N]``."""
        a, b = h.index_select(0, self.left), h.index_select(0, self.right)
        if not self.training:
            values = _TABLES.to(h)[self.tables()].T
            return _polynomial(_MONOMIALS.to(h) @ values, a, b)
        if self.is_raw:
            mixed = _TABLES.T.to(self.scores) @ functional.softmax(self.scores, 0)
            return _polynomial(_MONOMIALS.to(mixed) @ mixed, a, b)
        return torch.sigmoid(_polynomial(_WALSH.to(self.scores) @ self.scores, a, b))


def _polynomial(coefficients: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``c0 + c1 a + c2 b + c3 ab`` of coefficients ``[4, W]`` and inputs ``[W, N]``."""
    c0, c1, c2, c3 = coefficients[:, :, None]
    return torch.addcmul(torch.addcmul(c0, c1, a), torch.addcmul(c2, c3, a), b)


def connections(inputs: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two different inputs for each gate, so that every input is used if there are places for all.

    No two gates of a layer have the same pair.

    Args:
        inputs: I, how many values there are; there must be ``width`` pairs of them.
        width: W, how many gates.
        generator: Draws them.

    Returns:
        The first and the second input of each gate, int64 ``[W]``.
    """
    found: set[tuple[int, int]] = set()
    pairs: list[tuple[int, int]] = []
    while len(pairs) < width:
        order = torch.randperm(inputs, generator=generator, device="cpu").tolist()
        drawn = zip(order[::2], order[1::2] + order[:1], strict=False)
        if 4 * len(found) > inputs * (inputs - 1):
            every = torch.combinations(torch.arange(inputs, device="cpu"))
            chosen = torch.randperm(len(every), generator=generator, device="cpu").tolist()
            drawn = zip(*every[chosen].T.tolist(), strict=True)
        for one, other in drawn:
            key = (min(one, other), max(one, other))
            if key not in found and len(pairs) < width:
                found.add(key)
                pairs.append((one, other))
    left, right = torch.tensor(pairs, device="cpu").T
    return left.contiguous(), right.contiguous()
