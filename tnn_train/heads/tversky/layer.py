"""What every layer that measures Tversky similarity has: a feature space, and the weights of the measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_train.heads.precision import full_precision, precise
from tnn_train.heads.tversky import similarity
from tnn_train.heads.tversky.config import TverskyConfig
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.similarity import Features, Pairs, Parts

__all__ = ["SHORTEST", "TverskyMeasure", "TverskySimilarity", "at_least_one", "to_raw"]

SHORTEST = 1e-6
"""Vectors shorter than this are divided by it, not by their norm: the zero vector has a gradient too."""


class TverskyMeasure(nn.Module):
    """A feature space and the learned weights of a similarity in it: what `TverskySimilarity` and heads share.

    Args:
        in_features: D, the size of the vectors to be compared.
        config: The form of the measures.
        feature_bank: A bank ``[F, D]`` of another layer to share; a new one is made if ``None``.

    Attributes:
        feature_bank: Parameter ``[F, D]``, or ``[F / 2, D]`` if the features have opposites; ``None`` for the
            diagonal bank, whose features are ``|x_k|``.
        thresholds: Parameter with one value for each row of the bank (each dimension of a diagonal one), which is
            subtracted from the feature values; ``None`` without thresholds.
        raw_feature_weight: Parameter ``[D]`` behind ``feature_weight``; ``None`` for a learned bank.
        kept: Buffer ``[F]``: 0 for features that count for nothing, 1 for the others; ``None`` if all count.
        raw_alpha, raw_beta, raw_theta: Scalars behind ``alpha``, ``beta`` and ``theta``: parameters if they are
            learned, buffers if they are fixed.
    """

    feature_bank: nn.Parameter | None
    thresholds: nn.Parameter | None
    raw_feature_weight: nn.Parameter | None
    kept: Tensor | None
    raw_alpha: Tensor

    def __init__(self, in_features: int, config: TverskyConfig, feature_bank: nn.Parameter | None = None) -> None:
        super().__init__()
        at_least_one("in_features", in_features)
        self.in_features, self.config = in_features, config
        learned = config.feature_bank == "learned"
        if feature_bank is not None:
            _check_bank(feature_bank, (config.num_directions, in_features), learned)
        elif learned:
            feature_bank = nn.Parameter(torch.empty(config.num_directions, in_features))
            INITS[config.init](feature_bank, 1.0)
        self.register_parameter("feature_bank", feature_bank)
        directions = config.num_directions if learned else in_features
        self.register_parameter("thresholds", nn.Parameter(torch.zeros(directions)) if config.thresholds else None)
        weight = None if learned else nn.Parameter(to_raw(torch.ones(in_features)))
        self.register_parameter("raw_feature_weight", weight)
        self.register_buffer("kept", _kept(config.dropped, self.num_features), persistent=False)
        self._add_scalar("alpha", config.alpha)
        self._add_scalar("beta", config.beta)
        self._add_scalar("theta", config.theta)

    def directions(self, x: Tensor) -> Tensor:
        """Return the value of each row of the bank, less its threshold, for vectors ``x [..., D]``.

        These are the feature values ``[..., F]``; where features have opposites, those of the first half, on which the
        others follow: ``[..., F / 2]``.

        Raises:
            UsageError: If the vectors have another size than ``in_features``.
        """
        if x.shape[-1:] != (self.in_features,):
            raise UsageError(f"got vectors of shape {list(x.shape)}; expected [..., {self.in_features}]")
        x = x.to(torch.promote_types(self.raw_alpha.dtype, torch.float32))
        if self.config.normalize:
            x = functional.normalize(x, dim=-1, eps=SHORTEST)
        values = x.abs() if self.feature_bank is None else x @ precise(self.feature_bank).mT
        return values if self.thresholds is None else values - precise(self.thresholds)

    def with_opposites(self, values: Tensor) -> Tensor:
        """Return the feature values ``[..., F]`` that follow from those of `directions`."""
        opposites = self.config.opposites
        return torch.cat([values, -opposites * values], -1) if opposites else values

    def project(self, x: Tensor) -> Tensor:
        """Return the feature values ``[..., F]`` of vectors ``x [..., D]``, in the parameters' dtype, at least float32.

        Raises:
            UsageError: If the vectors have another size than ``in_features``.
        """
        return self.with_opposites(self.directions(x))

    def reach(self, x: Tensor) -> Tensor:
        """Return how large the `directions` of vectors as long as ``x [..., D]`` can be.

        They reach ``|x| |omega_k| + |tau_k|``.
        """
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self.config.normalize:
            length = (length / SHORTEST).clamp_max(1)
        bank = self.feature_bank
        values = length.expand_as(x) if bank is None else length * torch.linalg.vector_norm(bank, dim=1)
        return values if self.thresholds is None else values + self.thresholds.abs()

    def features(self, values: Tensor) -> Features:
        """Return which features objects have, from their feature values."""
        return similarity.MEMBERSHIPS[self.config.membership](values, self.config.sharpness)

    def parts(self, a: Tensor, b: Tensor) -> Parts:
        """Measure all pairs of feature values ``a [..., N, F]`` and ``b [..., P, F]``."""
        config = self.config
        pairs = Pairs(self.features(a), self.features(b), self.feature_weight)
        return similarity.measure(pairs, config.model, config.intersection, config.difference)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the similarities ``[..., N, P]`` of feature values ``a [..., N, F]`` and ``b [..., P, F]``."""
        model = similarity.smooth_ratio if self.config.smooth else similarity.MODELS[self.config.model]
        return model(self.parts(a, b), self.alpha, self.beta, self.theta)

    @property
    def num_features(self) -> int:
        """F, the number of features: of a diagonal bank, the size of the embedding."""
        return self.in_features if self.feature_bank is None else self.config.num_features

    @property
    def feature_weight(self) -> Tensor | None:
        """The weights of the features, ``[F]``: positive, 0 for those that count for nothing; ``None`` if all are 1."""
        if self.raw_feature_weight is None:
            return self.kept
        weight = _positive(precise(self.raw_feature_weight))
        return weight if self.kept is None else weight * self.kept

    @property
    def alpha(self) -> Tensor:
        """Weight of what only the input has, a scalar; not negative in the ratio model."""
        return self._scalar("alpha")

    @property
    def beta(self) -> Tensor:
        """Weight of what only the prototype has, a scalar; not negative in the ratio model."""
        return self._scalar("beta")

    @property
    def theta(self) -> Tensor:
        """Weight of the common features (contrast), or positive offset (ratio), a scalar."""
        return self._scalar("theta")

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"in_features={self.in_features}, config={self.config}"

    def _add_scalar(self, name: str, value: float) -> None:
        raw = torch.tensor(value, dtype=torch.float64)
        raw = (to_raw(raw) if self.config.model == "ratio" else raw).to(torch.get_default_dtype())
        if name in self.config.fixed:
            self.register_buffer(f"raw_{name}", raw)
        else:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))

    def _scalar(self, name: str) -> Tensor:
        """Return a scalar, which the ratio model keeps positive, so that its similarity stays within 0 and 1."""
        raw = precise(getattr(self, f"raw_{name}"))
        return _positive(raw) if self.config.model == "ratio" else raw


class TverskySimilarity(TverskyMeasure):
    """The Tversky similarity of two objects (arXiv 2506.11035), asymmetric where alpha and beta differ.

    Every pair of the broadcast shape takes the memory of F values; to compare all inputs with the same few objects,
    make these the prototypes of a Tversky head, which needs no such memory.

    Args:
        in_features: D, the size of the vectors to be compared.
        config: The form of the measures; what it says of prototypes is not used.
        feature_bank: A bank ``[F, D]`` of another layer to share; a new one is made if ``None``.
    """

    def __init__(
        self, in_features: int, config: TverskyConfig | None = None, feature_bank: nn.Parameter | None = None
    ) -> None:
        super().__init__(in_features, config or TverskyConfig(), feature_bank)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the similarities of ``x [..., D]`` and ``y [..., D]``, whose leading shapes are broadcast."""
        with full_precision(x):
            a, b = self.project(x), self.project(y)
            return self.compare(a.unsqueeze(-2), b.unsqueeze(-2)).squeeze((-1, -2))


def _kept(dropped: Sequence[int], num_features: int) -> Tensor | None:
    """Return which features count, ``[F]`` of 1 and 0; ``None`` if all do."""
    if not dropped:
        return None
    if not {*dropped} < {*range(num_features)}:
        raise UsageError(f"got the features {[*dropped]} to leave out; expected some of 0 to {num_features - 1}")
    kept = torch.ones(num_features)
    kept[list(dropped)] = 0
    return kept


def _positive(raw: Tensor) -> Tensor:
    # Above its threshold torch's softplus is the identity; at 40 that step is smaller than any rounding.
    return functional.softplus(raw, threshold=40)


def to_raw(value: Tensor) -> Tensor:
    """Return what stands behind a positive value in a state dict: the inverse of softplus."""
    return value + torch.log(-torch.expm1(-value))


def at_least_one(name: str, value: int) -> None:
    """Refuse a size below 1.

    Raises:
        UsageError: If it is.
    """
    if value < 1:
        raise UsageError(f"{name} is {value}; expected at least 1")


def _check_bank(bank: Any, shape: tuple[int, int], learned: bool) -> None:
    if not learned:
        raise UsageError("a feature bank to share was given with feature_bank='diagonal'; choose 'learned'")
    if not isinstance(bank, nn.Parameter) or bank.shape != shape:
        raise UsageError(
            f"got a feature bank of type {type(bank).__name__} and shape {list(getattr(bank, 'shape', []))}; expected "
            f"a Parameter [{shape[0]}, {shape[1]}] (one row for each feature, or each pair of opposites; in_features)"
        )
