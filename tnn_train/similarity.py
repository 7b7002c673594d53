"""Tversky measures as pure functions: the reference for every other form in this project.

Formulas: arXiv 2506.11035, section 2. Shapes: ``a [N, F]`` are the inputs in feature space (``x @ bank.T``),
``b [P, F]`` the prototypes; a feature belongs to an object where its value is above 0. All sums run over the F
features, and no function builds an ``[N, P, F]`` tensor: sums of products are matrix products, and sums of minima
follow from an L1 distance.

A new measure is a function here, entered in its table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DIFFERENCES", "INTERSECTIONS", "MODELS", "Parts", "contrast", "parts", "ratio"]


class Parts(NamedTuple):
    """The three measures of every pair, each ``[N, P]``."""

    common: Tensor
    """f(A and B)"""

    input_only: Tensor
    """f(A - B)"""

    prototype_only: Tensor
    """f(B - A)"""


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a+ b+, ``[N, P]``, where x+ = max(x, 0)."""
    return a.relu() @ b.relu().T


def ignorematch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of a+ where b lacks the feature and of b+ where a lacks it (eq. 4), ``[N, P]`` each."""
    a_has, b_has = (a > 0).to(a.dtype), (b > 0).to(b.dtype)
    return a.relu() @ (1 - b_has).T, (1 - a_has) @ b.relu().T


def subtractmatch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of (a+ - b+)+ and of (b+ - a+)+ (eq. 4 with the excess of eq. 5), ``[N, P]`` each."""
    a, b = a.relu(), b.relu()
    overlap = sum_of_minima(a, b)
    return a.sum(-1, keepdim=True) - overlap, b.sum(-1) - overlap


def sum_of_minima(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of min(a, b), ``[N, P]``, as half of (sum a + sum b - L1 distance)."""
    return (a.sum(-1, keepdim=True) + b.sum(-1) - torch.cdist(a, b, p=1.0)) / 2


def contrast(measured: Parts, alpha: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return theta f(A and B) - alpha f(A-B) - beta f(B-A), ``[N, P]``, unbounded."""
    return theta * measured.common - alpha * measured.input_only - beta * measured.prototype_only


def ratio(measured: Parts, alpha: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """Return f(A and B) / (f(A and B) + alpha f(A-B) + beta f(B-A) + theta), ``[N, P]``, from 0 to 1."""
    common, input_only, prototype_only = measured
    return common / (common + alpha * input_only + beta * prototype_only + theta)


INTERSECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"product": product}
DIFFERENCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "ignorematch": ignorematch,
    "subtractmatch": subtractmatch,
}
MODELS: dict[str, Callable[[Parts, Tensor, Tensor, Tensor], Tensor]] = {"contrast": contrast, "ratio": ratio}


def parts(a: Tensor, b: Tensor, intersection: str, difference: str) -> Parts:
    """Measure every pair of inputs ``a [N, F]`` and prototypes ``b [P, F]``."""
    return Parts(INTERSECTIONS[intersection](a, b), *DIFFERENCES[difference](a, b))
