"""The Tversky head as one matrix product after the projection.

At export the prototypes are constant, so each measure of arXiv 2506.11035 is an affine function of few quantities of
the input: a+ (the feature values where positive), m (which features are present) and M (the sums of minima of a+ and
each prototype's b+). Affine functions are closed under the sums and multiples that the contrast model makes of them,
and under what the numerator and the denominator of the ratio model need; so the whole head folds into one GEMM over
``[a+, m]``, and at most one M.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads import TverskyHead

__all__ = ["Affine", "lower_tversky"]


@dataclass(frozen=True)
class Affine:
    """``a+ @ positive.T + m @ present.T + minima * M + constant``, one value for each input and prototype.

    Args:
        positive: Coefficients of a+, ``[P, F]``.
        present: Coefficients of m, ``[P, F]``.
        minima: Coefficient of M, a scalar.
        constant: ``[P]``.
    """

    positive: Tensor
    present: Tensor
    minima: Tensor
    constant: Tensor

    def __add__(self, other: "Affine") -> "Affine":
        return Affine(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    def __rmul__(self, factor: Tensor) -> "Affine":
        return Affine(*(factor * getattr(self, name) for name in _FIELDS))


_FIELDS = ("positive", "present", "minima", "constant")


def _affine(b: Tensor, **coefficients: Tensor | float) -> Affine:
    """Return the affine function with these coefficients for prototypes ``b [P, F]``, the others 0."""
    shapes = {"positive": b.shape, "present": b.shape, "minima": (), "constant": b.shape[:1]}
    return Affine(**{name: b.new_zeros(shape) + coefficients.get(name, 0.0) for name, shape in shapes.items()})


def _product(b: Tensor) -> Affine:
    return _affine(b, positive=b.relu())


def _ignorematch(b: Tensor) -> tuple[Affine, Affine]:
    return _affine(b, positive=(b <= 0).to(b.dtype)), _affine(b, present=-b.relu(), constant=b.relu().sum(1))


def _subtractmatch(b: Tensor) -> tuple[Affine, Affine]:
    return _affine(b, positive=1.0, minima=-1.0), _affine(b, minima=-1.0, constant=b.relu().sum(1))


_INTERSECTIONS: dict[str, Callable[[Tensor], Affine]] = {"product": _product}
_DIFFERENCES: dict[str, Callable[[Tensor], tuple[Affine, Affine]]] = {
    "ignorematch": _ignorematch,
    "subtractmatch": _subtractmatch,
}


def lower_tversky(head: TverskyHead) -> nn.Module:
    """Fold the prototype side of a trained head into constants.

    The algebra runs in float64, but on the prototype's features as the head itself computes them: which of them are
    present must not depend on the precision.
    """
    with torch.no_grad():
        bank, b, alpha, beta, theta, scale = (
            tensor.detach().cpu().double()
            for tensor in (
                head.feature_bank,
                head.project(head.prototypes),
                head.alpha,
                head.beta,
                head.theta,
                head.logit_scale,
            )
        )
        common = _INTERSECTIONS[head.config.intersection](b)
        input_only, prototype_only = _DIFFERENCES[head.config.difference](b)
        differences = alpha * input_only + beta * prototype_only
        if head.config.model == "contrast":
            return LoweredContrast(bank, b, theta * common + b.new_tensor(-1.0) * differences)
        return LoweredRatio(bank, b, scale * common, common + differences + _affine(b, constant=theta))


class LoweredContrast(nn.Module):
    """Embeddings ``[N, D]`` to logits ``[N, P]`` that are one affine function."""

    def __init__(self, bank: Tensor, b: Tensor, logits: Affine) -> None:
        super().__init__()
        self.features = _Features(bank, b, [logits])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, P]``."""
        logits: Tensor = self.features(x)
        return logits


class LoweredRatio(nn.Module):
    """Embeddings ``[N, D]`` to logits ``[N, P]`` that are the quotient of two affine functions."""

    def __init__(self, bank: Tensor, b: Tensor, numerator: Affine, denominator: Affine) -> None:
        super().__init__()
        self.features = _Features(bank, b, [numerator, denominator])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, P]``."""
        numerator, denominator = self.features(x).chunk(2, dim=1)
        logits: Tensor = numerator / denominator
        return logits


class _Features(nn.Module):
    """Embeddings ``[N, D]`` to the values of k affine functions, ``[N, k * P]``; what none uses is left out."""

    bank: Tensor
    weight: Tensor
    constant: Tensor
    minima: Tensor
    prototype_features: Tensor

    def __init__(self, bank: Tensor, b: Tensor, functions: list[Affine]) -> None:
        super().__init__()
        positive, present = (torch.cat([getattr(f, name) for f in functions]) for name in ("positive", "present"))
        self.uses_present = bool(present.any())
        self.uses_minima = any(bool(f.minima != 0) for f in functions)
        constants = {
            "bank": bank,
            "weight": torch.cat([positive, present], dim=1) if self.uses_present else positive,
            "constant": torch.cat([f.constant for f in functions]),
            "minima": torch.cat([f.minima.expand(len(b)) for f in functions]),
            "prototype_features": b.relu().unsqueeze(0),
        }
        self.functions = len(functions)
        for name, value in constants.items():
            self.register_buffer(name, value.float())

    def forward(self, x: Tensor) -> Tensor:
        a = functional.linear(x, self.bank)
        positive = a.relu()
        present = (a > 0).to(a.dtype)
        inputs = torch.cat([positive, present], dim=1) if self.uses_present else positive
        values = functional.linear(inputs, self.weight, self.constant)
        if self.uses_minima:
            minima = torch.minimum(positive.unsqueeze(1), self.prototype_features).sum(-1)
            if self.functions > 1:
                minima = torch.cat([minima] * self.functions, dim=1)
            values = values + self.minima * minima
        return values
