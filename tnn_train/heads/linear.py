"""The baseline: a linear layer."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from tnn_train.heads.base import Head

__all__ = ["LinearHead"]


class LinearHead(nn.Linear, Head):
    """``nn.Linear`` from embeddings ``[N, D]`` to logits ``[N, C]``."""

    family = "linear"

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        """Build the head; it has no options."""
        return cls(in_features, num_classes)

    def arrays(self) -> dict[str, Tensor]:
        """Return ``weight [C, D]`` and ``bias [C]``."""
        return {"weight": self.weight, "bias": self.bias}
