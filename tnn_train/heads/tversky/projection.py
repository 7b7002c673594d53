"""The Tversky projection: similarities of embeddings to learned prototypes (arXiv 2506.11035)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.precision import full_precision, precise
from tnn_train.heads.tversky.config import CLASS_MEANS, TverskyConfig
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.layer import TverskyMeasure, at_least_one

__all__ = ["TverskyProjection"]


class TverskyProjection(TverskyMeasure):
    """Logits from the Tversky similarities of the embedding to learned prototypes (arXiv 2506.11035).

    With one prototype a class, the similarities are the logits, times a learned scale in the ratio model. With
    ``config.num_prototypes``, a linear map from the scaled similarities to the classes follows.

    Args:
        in_features: D, the size of the embedding.
        num_classes: C, the number of logits.
        config: The form of the measures.
        feature_bank: A bank ``[F, D]`` of another layer to share; a new one is made if ``None``.

    Attributes:
        prototypes: Parameter ``[P, D]``, or ``[P, F]`` if the prototypes are feature values.
        linear: The map from P prototypes to C classes, or ``None`` with one prototype a class.
        raw_logit_scale: Scalar behind ``logit_scale``, of the ratio model.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        config: TverskyConfig | None = None,
        feature_bank: nn.Parameter | None = None,
    ) -> None:
        config = config or TverskyConfig()
        super().__init__(in_features, config, feature_bank)
        at_least_one("num_classes", num_classes)
        self.num_classes = num_classes
        size = in_features if config.prototype_space == "embedding" else self.num_features
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes or num_classes, size))
        init = config.init if config.prototype_init in (None, CLASS_MEANS) else config.prototype_init
        INITS[init](self.prototypes, config.prototype_gain)
        self.linear = nn.Linear(config.num_prototypes, num_classes) if config.num_prototypes else None
        if config.model == "ratio":
            self._add_scalar("logit_scale", config.logit_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[..., C]`` of embeddings ``x [..., D]``, in the parameters' dtype, at least float32."""
        with full_precision(x):
            return self.score(self.directions(x))

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the similarities ``[N, P]`` to the prototypes and the weighted measures that they are made of.

        Contrast model: ``similarities = common - input_only - prototype_only``.
        Ratio model: ``similarities = common / (common + input_only + prototype_only + theta)``, with ``common + theta``
        in the numerator if it is smooth.
        """
        with full_precision(x):
            a = self.with_opposites(self.directions(x) if switches is None else switches)
            b = self.prototype_values
            parts = self.parts(a, b)
            return {
                "similarities": self.compare(a, b),
                "common": parts.common * (self.theta if self.config.model == "contrast" else 1.0),
                "input_only": parts.input_only * self.alpha,
                "prototype_only": parts.prototype_only * self.beta,
            }

    def similarities(self, x: Tensor) -> Tensor:
        """Return the similarities ``[..., P]`` of embeddings ``x [..., D]`` to the prototypes."""
        with full_precision(x):
            return self._similarities(self.project(x))

    def score(self, switches: Tensor) -> Tensor:
        """Return logits ``[..., C]`` from the values of `directions`."""
        scaled = self.logit_scale * self._similarities(self.with_opposites(switches))
        if self.linear is None:
            return scaled
        return functional.linear(scaled, precise(self.linear.weight), precise(self.linear.bias))

    def _similarities(self, a: Tensor) -> Tensor:
        compared = self.compare(a.reshape(-1, a.shape[-1]), self.prototype_values)
        return compared.reshape(*a.shape[:-1], len(self.prototypes))

    @property
    def prototype_values(self) -> Tensor:
        """The feature values of the prototypes, ``[P, F]``."""
        embedded = self.config.prototype_space == "embedding"
        return self.project(self.prototypes) if embedded else precise(self.prototypes)

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the ratio model's similarities, a positive scalar; 1 in the contrast model."""
        return self._scalar("logit_scale") if self.config.model == "ratio" else self.prototypes.new_ones(())

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, config={self.config}"
