"""The baseline: a linear layer."""

from __future__ import annotations

from typing import Self

from torch import nn

from tnn_train.model.config import ModelConfig

__all__ = ["LinearHead"]


class LinearHead(nn.Linear):
    """``nn.Linear`` from embeddings ``[N, D]`` to logits ``[N, C]``."""

    @classmethod
    def from_config(cls, in_features: int, config: ModelConfig) -> Self:
        """Build the head for ``config.num_classes`` classes."""
        return cls(in_features, config.num_classes)
