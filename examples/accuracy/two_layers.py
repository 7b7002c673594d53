"""A head of two linear layers with ReLU between: what a Tversky head with as many features is compared with."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads import HEADS, Head
from tnn_train.heads.precision import full_precision, precise

HIDDEN = 64


class TwoLayers(Head):
    """Logits ``W2 relu(W1 x + b1) + b2`` with `HIDDEN` hidden units."""

    family = "two-layers"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, HIDDEN)
        self.output = nn.Linear(HIDDEN, num_classes)

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: Any) -> Self:
        """Build the head, which has no options."""
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``."""
        with full_precision(x):
            hidden = functional.relu(self.hidden(precise(x)))
            logits: Tensor = self.output(hidden)
            return logits


HEADS[TwoLayers.family] = TwoLayers
