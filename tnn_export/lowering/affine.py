"""The algebra of the lowering: Tversky measures as affine functions of few quantities of the input.

At export the prototypes are constant. Each measure of arXiv 2506.11035, and each sum and multiple that the contrast
model or the numerator and denominator of the ratio model make of measures, is then an affine function of

* ``a+``, the saliences of the input's features, ``[N, F]``, and their square roots,
* ``m``, their memberships, ``[N, F]``,
* ``M``, the sums of the minima of a+ and each prototype's b+, ``[N, P]``,
* ``S``, the sums of their soft minima, ``[N, P]``.

A new measure is an entry in `INTERSECTIONS` or `DIFFERENCES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
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
    """

    membership: Tensor
    salience: Tensor
    weight: Tensor

    def affine(self, **coefficients: Tensor | float) -> Affine:
        """Return the affine function with these coefficients for each prototype, the others 0."""
        rows, features = self.salience.shape
        shapes = dict.fromkeys(_OF_FEATURES, (rows, features)) | dict.fromkeys(_OF_PROTOTYPES, (rows, rows))
        values = {name: self.salience.new_zeros(shape) for name, shape in shapes.items()}
        values["constant"] = self.salience.new_zeros(rows)
        return Affine(**{name: zeros + coefficients.get(name, 0.0) for name, zeros in values.items()})

    @property
    def each(self) -> Tensor:
        """The coefficients that give each prototype its own M or S, ``[P, P]``."""
        return torch.eye(len(self.salience), dtype=self.salience.dtype)

    def constant(self, value: Tensor) -> Affine:
        """Return the function that is ``value`` for each prototype."""
        return self.affine(constant=value)


@dataclass(frozen=True)
class Affine:
    """K affine functions of one input.

    Args:
        positive: Coefficients of a+, ``[K, F]``.
        present: Coefficients of m, ``[K, F]``.
        root: Coefficients of the roots of a+, ``[K, F]``.
        minima: Coefficients of M, ``[K, P]``.
        soft_minima: Coefficients of S, ``[K, P]``.
        constant: ``[K]``.
    """

    positive: Tensor
    present: Tensor
    root: Tensor
    minima: Tensor
    soft_minima: Tensor
    constant: Tensor

    def __add__(self, other: Affine) -> Affine:
        return self._map(lambda name, value: value + getattr(other, name))

    def __sub__(self, other: Affine) -> Affine:
        return self._map(lambda name, value: value - getattr(other, name))

    def __rmul__(self, factor: Tensor) -> Affine:
        return self._map(lambda name, value: factor * value)

    def through(self, weight: Tensor, bias: Tensor) -> Affine:
        """Return the functions after a linear map ``weight [C, K]``, ``bias [C]``."""
        mapped = self._map(lambda name, value: weight @ value)
        return dataclasses.replace(mapped, constant=mapped.constant + bias)

    @staticmethod
    def stack(functions: list[Affine]) -> Affine:
        """Return all functions, one after the other."""
        return functions[0]._map(lambda name, _: torch.cat([getattr(f, name) for f in functions]))

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Affine:
        fields = [field.name for field in dataclasses.fields(self)]
        return Affine(**{name: change(name, getattr(self, name)) for name in fields})


_OF_FEATURES = ("positive", "present", "root")
_OF_PROTOTYPES = ("minima", "soft_minima")


def _product(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.salience)


def _mean(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.membership / 2, present=p.weight * p.salience / 2)


def _gmean(p: Prototypes) -> Affine:
    return p.affine(root=p.weight * p.salience.sqrt())


def _min(p: Prototypes) -> Affine:
    return p.affine(minima=p.each)


def _max(p: Prototypes) -> Affine:
    return p.affine(positive=p.weight * p.membership, present=p.weight * p.salience, minima=-p.each)


def _softmin(p: Prototypes) -> Affine:
    return p.affine(soft_minima=p.each)


def softmin_of_means(p: Prototypes) -> Affine:
    """Return the soft minimum of the ratio model, which is never negative."""
    return _softmin(p) + p.affine(present=math.log(2) * p.weight * p.membership)


def _ignorematch(p: Prototypes) -> tuple[Affine, Affine]:
    salience = p.weight * p.salience
    return p.affine(positive=p.weight * (1 - p.membership)), p.affine(present=-salience, constant=salience.sum(1))


def _subtractmatch(p: Prototypes) -> tuple[Affine, Affine]:
    minima = p.affine(minima=p.each)
    return p.affine(positive=p.weight) - minima, p.affine(constant=(p.weight * p.salience).sum(1)) - minima


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
}
