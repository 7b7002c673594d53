"""The baseline: a linear layer."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.base import Head
from tnn_train.heads.precision import full_precision, precise

__all__ = ["LinearHead"]


class LinearHead(nn.Linear, Head):
    """``nn.Linear`` from embeddings ``[N, D]`` to logits ``[N, C]``."""

    family = "linear"

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        """Build the head; it has no options."""
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``, in the parameters' dtype, at least float32."""
        with full_precision(x):
            weight = precise(self.weight)
            return functional.linear(x.to(weight.dtype), weight, precise(self.bias))

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the embeddings: their values are the features."""
        return x

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps

    def arrays(self) -> dict[str, Tensor]:
        """Return ``weight [C, D]`` and ``bias [C]``."""
        return {"weight": self.weight, "bias": self.bias}
