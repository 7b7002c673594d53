"""The algebra of the lowering: Tversky measures as affine functions of few quantities of the input.

At export the prototypes are constant. Each measure of arXiv 2506.11035, and each sum and multiple that the contrast
model or the numerator and denominator of the ratio model make of measures, is then an affine function of

* ``a+``, the saliences of the input's features, ``[N, F]``, and their square roots,
* ``m``, their memberships, ``[N, F]``,
* ``M``, the sums of the minima of a+ and each prototype's b+, ``[N, P]``,
* ``S``, the sums of their soft minima, ``[N, P]``,
* with degrees of membership, the sums of the minima of a+ m and b+ n, ``[N, P]``; else these are M.

A new measure is an entry in `INTERSECTIONS` or `DIFFERENCES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DIFFERENCES", "INTERSECTIONS", "Affine", "Prototypes", "softmin_of_means"]


@dataclass(frozen=True)
class Prototypes:
    """The constant side, float64.

    Args:
        membership: n, ``[P, F]``.
        salience: b+, ``[P, F]``.
        weight: The weights of the features, ``[F]``.
        is_hard: Whether a membership is either 0 or 1, n as well as m.
    """

    membership: Tensor
    salience: Tensor
    weight: Tensor
    is_hard: bool

    def affine(self, **coefficients: Tensor | float) -> Affine:
        """Return the affine functions, one for each prototype, with these coefficients, the others 0."""
        shapes = {name: self.salience.shape if name in _OF_FEATURES else self.salience.shape[:1] for name in _NAMES}
        zeros = {name: self.salience.new_zeros(shape) for name, shape in shapes.items()}
        return Affine(**{name: zero + coefficients.get(name, 0.0) for name, zero in zeros.items()})


@dataclass(frozen=True)
class Affine:
    """K affine functions of one input; P divides K, and the k-th function is one of prototype ``k % P``.

    Args:
        positive: Coefficients of a+, ``[K, F]``.
        present: Coefficients of m, ``[K, F]``.
        root: Coefficients of the roots of a+, ``[K, F]``.
        minima: Coefficients of the prototype's own M, ``[K]``.
        soft_minima: Coefficients of the prototype's own S, ``[K]``.
        shared_minima: Coefficients of the prototype's own sum of min(a+ m, b+ n), ``[K]``.
        constant: ``[K]``.
    """

    positive: Tensor
    present: Tensor
    root: Tensor
    minima: Tensor
    soft_minima: Tensor
    shared_minima: Tensor
    constant: Tensor

    def __add__(self, other: Affine) -> Affine:
        return Affine(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    def __sub__(self, other: Affine) -> Affine:
        return Affine(*(getattr(self, name) - getattr(other, name) for name in _NAMES))

    def __rmul__(self, factor: Tensor) -> Affine:
        return Affine(*(factor * getattr(self, name) for name in _NAMES))

    @staticmethod
    def stack(functions: Sequence[Affine]) -> Affine:
        """Return all functions, one after the other."""
        return Affine(*(torch.cat([getattr(function, name) for function in functions]) for name in _NAMES))


_NAMES = tuple(field.name for field in dataclasses.fields(Affine))
_OF_FEATURES = ("positive", "present", "root")


def _product(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.salience)


def _mean(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.membership / 2, present=p.weight * p.salience / 2)


def _gmean(p: Prototypes) -> Affine:
    return p.affine(root=p.weight * p.salience.sqrt())


def _min(p: Prototypes) -> Affine:
    return p.affine(minima=1.0)


def _max(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.membership, present=p.weight * p.salience, minima=-1.0)


def _softmin(p: Prototypes) -> Affine:
    return p.affine(soft_minima=1.0)


def softmin_of_means(p: Prototypes) -> Affine:
    """Return the soft minimum of the ratio model, which is never negative."""
    return _softmin(p) + p.affine(present=math.log(2) * p.weight * p.membership)


def _ignorematch(p: Prototypes) -> tuple[Affine, Affine]:
    salience = p.weight * p.salience
    return p.affine(positive=p.weight * (1 - p.membership)), p.affine(present=-salience, constant=salience.sum(1))


def _subtractmatch(p: Prototypes) -> tuple[Affine, Affine]:
    minima = p.affine(minima=1.0)
    return p.affine(positive=p.weight) - minima, p.affine(constant=(p.weight * p.salience).sum(1)) - minima


def _excess(p: Prototypes) -> tuple[Affine, Affine]:
    shared = p.affine(minima=1.0) if p.is_hard else p.affine(shared_minima=1.0)
    return p.affine(positive=p.weight * p.membership) - shared, p.affine(present=p.weight * p.salience) - shared


INTERSECTIONS: dict[str, Callable[[Prototypes], Affine]] = {
    "product": _product,
    "mean": _mean,
    "gmean": _gmean,
    "min": _min,
    "max": _max,
    "softmin": _softmin,
}
DIFFERENCES: dict[str, Callable[[Prototypes], tuple[Affine, Affine]]] = {
    "ignorematch": _ignorematch,
    "subtractmatch": _subtractmatch,
    "excess": _excess,
}
