"""The Tversky projection as a classification head."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train import similarity
from tnn_train.config import ModelConfig, TverskyConfig

__all__ = ["TverskyHead"]

_RATIO_LOGIT_SCALE = 20.0
"""Initial logit scale: similarities within 0..1 could not reach a low cross-entropy without one."""


class TverskyHead(nn.Module):
    """Logits are Tversky similarities of the embedding to one learned prototype a class (arXiv 2506.11035).

    Args:
        in_features: D, the size of the embedding.
        num_classes: P, the number of prototypes and of logits.
        config: The form of the measures.

    Attributes:
        feature_bank: Parameter ``[F, D]``.
        prototypes: Parameter ``[P, D]``.
        raw_alpha, raw_beta, raw_theta, raw_logit_scale: Scalar parameters behind the properties without ``raw_``.
    """

    def __init__(self, in_features: int, num_classes: int, config: TverskyConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TverskyConfig()
        self.feature_bank = nn.Parameter(torch.empty(config.num_features, in_features))
        self.prototypes = nn.Parameter(torch.empty(num_classes, in_features))
        self.raw_alpha = self._scalar(config.alpha)
        self.raw_beta = self._scalar(config.beta)
        self.raw_theta = self._scalar(config.theta)
        if config.model == "ratio":
            self.raw_logit_scale = self._scalar(_RATIO_LOGIT_SCALE)
        self.reset_parameters()

    @classmethod
    def from_config(cls, in_features: int, config: ModelConfig) -> Self:
        """Build the head for ``config.num_classes`` classes in the form ``config.tversky``."""
        return cls(in_features, config.num_classes, config.tversky)

    def reset_parameters(self) -> None:
        """Draw the feature bank uniformly with rows of unit norm on average, and the prototypes from +-4/sqrt(D).

        Prototypes as small as the bank start with so few common features that training loses its first epochs.
        """
        in_features = self.feature_bank.shape[1]
        nn.init.uniform_(self.feature_bank, -math.sqrt(3 / in_features), math.sqrt(3 / in_features))
        nn.init.uniform_(self.prototypes, -4 / math.sqrt(in_features), 4 / math.sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, P]`` of embeddings ``x [N, D]``."""
        return self.score(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """Return the feature values ``[N, F]`` of embeddings or prototypes ``x [N, D]``."""
        return x @ self.feature_bank.T

    def score(self, a: Tensor) -> Tensor:
        """Return logits ``[N, P]`` from feature values ``a [N, F]``."""
        config = self.config
        measured = similarity.parts(a, self.project(self.prototypes), config.intersection, config.difference)
        return self.logit_scale * similarity.MODELS[config.model](measured, self.alpha, self.beta, self.theta)

    @property
    def alpha(self) -> Tensor:
        """Weight of what only the input has, a scalar; positive in the ratio model."""
        return self._effective(self.raw_alpha)

    @property
    def beta(self) -> Tensor:
        """Weight of what only the prototype has, a scalar; positive in the ratio model."""
        return self._effective(self.raw_beta)

    @property
    def theta(self) -> Tensor:
        """Weight of the common features (contrast), or positive offset of the denominator (ratio), a scalar."""
        return self._effective(self.raw_theta)

    @property
    def logit_scale(self) -> Tensor:
        """The learned factor of the ratio model's similarities, a positive scalar; 1 in the contrast model."""
        if self.config.model == "ratio":
            return self._effective(self.raw_logit_scale)
        return self.prototypes.new_ones(())

    def extra_repr(self) -> str:
        """Describe the head in one line."""
        return f"in_features={self.feature_bank.shape[1]}, num_classes={self.prototypes.shape[0]}, config={self.config}"

    def _scalar(self, value: float) -> nn.Parameter:
        """Return the parameter whose effective value is ``value``."""
        raw = torch.tensor(value, dtype=torch.float64)
        if self.config.model == "ratio":
            raw = raw + torch.log(-torch.expm1(-raw))
        return nn.Parameter(raw.to(torch.get_default_dtype()))

    def _effective(self, raw: Tensor) -> Tensor:
        """Keep the ratio model's scalars positive, so that its similarity stays between 0 and 1."""
        return functional.softplus(raw, threshold=40) if self.config.model == "ratio" else raw
