"""Tversky measures as pure functions: the reference for every other form in this project.

Formulas: arXiv 2506.11035, section 2. Shapes: ``a [..., N, F]`` are the values of N inputs in feature space
(``x @ bank.T``), ``b [..., P, F]`` those of P prototypes; leading dimensions are batches, as in ``torch.matmul``. A
feature belongs to an object where its value is above 0. Every sum runs over the F features, weighted by ``w_k`` where
there are weights.

Between N inputs and P prototypes, no measure but `softmin` builds an ``[N, P, F]`` tensor, forward or backward: sums of
products are matrix products, and sums of minima follow from an L1 distance. `softmin` works on `BLOCK` prototypes at a
time and computes each block again in the backward pass, so it holds no more than a few tensors of ``N * BLOCK * F``
values at once. Gradients are for reverse mode, once: ``torch.cdist``, behind the sums of minima, has neither second
derivatives nor a forward mode.

A new measure is a function here, entered in its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = [
    "BLOCK",
    "DIFFERENCES",
    "INTERSECTIONS",
    "MEMBERSHIPS",
    "MODELS",
    "Features",
    "Pairs",
    "Parts",
    "contrast",
    "measure",
    "ratio",
    "smooth_ratio",
]

BLOCK = 16
"""How many prototypes a pairwise tensor may hold; measured, see ``docs/results/head.md``."""


class Features(NamedTuple):
    """Which features objects have, and how much of each; two tensors of the shape of the feature values."""

    membership: Tensor
    """m: 1 where the object has the feature and 0 where it lacks it, or the degree between."""

    salience: Tensor
    """a+: the value of the feature where it is above 0, times its membership; never negative."""


def hard(a: Tensor, sharpness: float) -> Features:
    """Return the membership of the paper: a feature is present where its value is above 0."""
    return Features((a > 0).to(a.dtype), a.relu())


def sigmoid(a: Tensor, sharpness: float) -> Features:
    """Return a membership without a jump: ``sigmoid(sharpness * a)``.

    The salience is ``max(a, 0) * m`` and not ``a * m``: what an object lacks has the salience 0, as with hard
    membership. A negative one would leave ``gmean`` undefined and let the ratio model's denominator pass through 0.
    """
    membership = (sharpness * a).sigmoid()
    return Features(membership, a.relu() * membership)


class Parts(NamedTuple):
    """The three measures of every pair, each ``[..., N, P]``."""

    common: Tensor
    """f(A and B)"""

    input_only: Tensor
    """f(A - B)"""

    prototype_only: Tensor
    """f(B - A)"""


class Pairs:
    """All pairs of inputs and prototypes: the sums over their features that the measures are made of.

    Args:
        a: The inputs, ``[..., N, F]``.
        b: The prototypes, ``[..., P, F]``.
        weight: Positive weights of the features, ``[F]``; all 1 if ``None``.
    """

    def __init__(self, a: Features, b: Features, weight: Tensor | None = None) -> None:
        self.a, self.b, self.weight = a, b, weight
        self._minima: Tensor | None = None

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sums of x y, ``[..., N, P]``, for ``x [..., N, F]`` and ``y [..., P, F]``.

        Without gradients they are summed up in float64 and rounded once: with a thousand classes, what two classes
        differ by is small beside the sums over some two thousand features.
        """
        y = self._weigh(y)
        return x @ y.mT if torch.is_grad_enabled() else (x.double() @ y.double().mT).to(x.dtype)

    @property
    def a_total(self) -> Tensor:
        """f(A), the sum of a+, ``[..., N, 1]``."""
        return self._weigh(self.a.salience).sum(-1).unsqueeze(-1)

    @property
    def b_total(self) -> Tensor:
        """f(B), the sum of b+, ``[..., 1, P]``."""
        return self._weigh(self.b.salience).sum(-1).unsqueeze(-2)

    @property
    def minima(self) -> Tensor:
        """M, the sum of min(a+, b+), ``[..., N, P]``, as half of (sum a+ + sum b+ - L1 distance); computed once."""
        if self._minima is None:
            self._minima = _minima(self._weigh(self.a.salience), self._weigh(self.b.salience))
        return self._minima

    @property
    def shared_minima(self) -> Tensor:
        """The sum of min(a+ m, b+ n), ``[..., N, P]``: M, with hard membership.

        Without gradients it is computed in float64 and rounded once, as `dot` is: where nothing is shared, it is to be
        0 and not a rounding error of all that is not.
        """
        a, b = (self._weigh(x.salience * x.membership) for x in (self.a, self.b))
        return _minima(a, b) if torch.is_grad_enabled() else _minima(a.double(), b.double()).to(a.dtype)

    @property
    def soft_minima(self) -> Tensor:
        """The sum of -log(e^-a+ + e^-b+) m n, ``[..., N, P]``, in blocks of `BLOCK` prototypes."""
        presence = self._weigh(self.b.membership)
        blocks = zip(torch.split(self.b.salience, BLOCK, -2), torch.split(presence, BLOCK, -2), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([_soft_minima(*self.a, b, n) for b, n in blocks], -1)
        return torch.cat(
            [checkpoint(_soft_minima, *self.a, b, n, use_reentrant=False, preserve_rng_state=False) for b, n in blocks],
            -1,
        )

    def _weigh(self, x: Tensor) -> Tensor:
        return x if self.weight is None else x * self.weight


def _minima(a: Tensor, b: Tensor) -> Tensor:
    if not torch.is_grad_enabled() and a.dtype != torch.float64:
        return _minima(a.double(), b.double()).to(a.dtype)
    # What one side has far beyond the other is in no minimum: cut off, it cannot drown small ones in rounding errors.
    largest_a = functional.pad(a.detach(), (0, 0, 0, 1)).amax(-2, keepdim=True)
    largest_b = b.detach().amax(-2, keepdim=True)
    a, b = a.minimum(2 * largest_b), b.minimum(2 * largest_a)
    # On a GPU the backward pass of cdist fills an [N, P, F] buffer; on a CPU it needs none.
    blocks = (b,) if b.device.type == "cpu" else torch.split(b, BLOCK, -2)
    distance = torch.cat([torch.cdist(a, block, p=1.0) for block in blocks], -1)
    return (a.sum(-1).unsqueeze(-1) + b.sum(-1).unsqueeze(-2) - distance) / 2


def _soft_minima(m: Tensor, a: Tensor, b: Tensor, n: Tensor) -> Tensor:
    pairwise = -torch.logaddexp(-a.unsqueeze(-2), -b.unsqueeze(-3))
    return (pairwise * m.unsqueeze(-2) * n.unsqueeze(-3)).sum(-1)


def product(pairs: Pairs) -> Tensor:
    """Return the sum of a+ b+."""
    return pairs.dot(pairs.a.salience, pairs.b.salience)


def mean(pairs: Pairs) -> Tensor:
    """Return the sum of (a+ n + m b+) / 2: with hard membership, of the means over the features of both."""
    a, b = pairs.a, pairs.b
    return (pairs.dot(a.salience, b.membership) + pairs.dot(a.membership, b.salience)) / 2


def gmean(pairs: Pairs) -> Tensor:
    """Return the sum of sqrt(a+ b+)."""
    return pairs.dot(_root(pairs.a.salience), _root(pairs.b.salience))


def minimum(pairs: Pairs) -> Tensor:
    """Return the sum of min(a+, b+)."""
    return pairs.minima


def maximum(pairs: Pairs) -> Tensor:
    """Return the sum of a+ n + m b+ - min(a+, b+): with hard membership, of max(a+, b+) over the features of both."""
    a, b = pairs.a, pairs.b
    return pairs.dot(a.salience, b.membership) + pairs.dot(a.membership, b.salience) - pairs.minima


def softmin(pairs: Pairs) -> Tensor:
    """Return the sum of -log(e^-a+ + e^-b+) over the features of both.

    A soft minimum lies up to log 2 below the minimum, so features that are weak in both objects count as negative. In
    the ratio model, where no measure may be negative, it is `softmin_of_means`.
    """
    return pairs.soft_minima


def softmin_of_means(pairs: Pairs) -> Tensor:
    """Return the sum of -log((e^-a+ + e^-b+) / 2) over the features of both: `softmin` plus log 2 for each feature.

    It is never negative. With hard membership it lies between the minimum and the mean, and is a+ where a+ = b+.
    """
    return pairs.soft_minima + math.log(2) * pairs.dot(pairs.a.membership, pairs.b.membership)


def ignorematch(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the sums of a+ where b lacks the feature and of b+ where a lacks it (eq. 4)."""
    a, b = pairs.a, pairs.b
    return pairs.dot(a.salience, 1 - b.membership), pairs.dot(1 - a.membership, b.salience)


def subtractmatch(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the sums of (a+ - b+)+ and of (b+ - a+)+ (eq. 4 and eq. 5 together)."""
    return pairs.a_total - pairs.minima, pairs.b_total - pairs.minima


def excess(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the sums of a+ n - min(a+ m, b+ n) and of m b+ - min(a+ m, b+ n) (eq. 5).

    With hard membership these are the sums of (a+ - b+)+ and of (b+ - a+)+ over the features of both. With degrees of
    membership, too, no term is negative, and no object has an excess over itself. Nor does a rounding error make a sum
    negative: the denominator of the ratio model must not pass through 0.
    """
    a, b, shared = pairs.a, pairs.b, pairs.shared_minima
    input_only, prototype_only = pairs.dot(a.salience, b.membership), pairs.dot(a.membership, b.salience)
    return (input_only - shared).clamp_min(0), (prototype_only - shared).clamp_min(0)


def contrast(parts: Parts, alpha: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return theta f(A and B) - alpha f(A-B) - beta f(B-A), unbounded."""
    return theta * parts.common - alpha * parts.input_only - beta * parts.prototype_only


def ratio(parts: Parts, alpha: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return f(A and B) / (f(A and B) + alpha f(A-B) + beta f(B-A) + theta), from 0 to 1 but for rounding."""
    common, input_only, prototype_only = parts
    return common / (common + alpha * input_only + beta * prototype_only + theta)


def smooth_ratio(parts: Parts, alpha: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return (f(A and B) + theta) / (f(A and B) + alpha f(A-B) + beta f(B-A) + theta), 1 where all measures are 0."""
    common, input_only, prototype_only = parts
    return (common + theta) / (common + alpha * input_only + beta * prototype_only + theta)


def _root(x: Tensor) -> Tensor:
    """Return the square root with the gradient 0 at 0, where it would be infinite."""
    positive = x > 0
    return torch.where(positive, x, 1).sqrt() * positive


MEMBERSHIPS: dict[str, Callable[[Tensor, float], Features]] = {"hard": hard, "sigmoid": sigmoid}
INTERSECTIONS: dict[str, Callable[[Pairs], Tensor]] = {
    "product": product,
    "mean": mean,
    "gmean": gmean,
    "min": minimum,
    "max": maximum,
    "softmin": softmin,
}
DIFFERENCES: dict[str, Callable[[Pairs], tuple[Tensor, Tensor]]] = {
    "ignorematch": ignorematch,
    "subtractmatch": subtractmatch,
    "excess": excess,
}
MODELS: dict[str, Callable[[Parts, Tensor, Tensor, Tensor], Tensor]] = {"contrast": contrast, "ratio": ratio}


def measure(pairs: Pairs, model: str, intersection: str, difference: str) -> Parts:
    """Measure every pair, in the form that the three names choose."""
    intersections = INTERSECTIONS if model == "contrast" else {**INTERSECTIONS, "softmin": softmin_of_means}
    return Parts(intersections[intersection](pairs), *DIFFERENCES[difference](pairs))
