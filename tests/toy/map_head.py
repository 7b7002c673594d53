"""A toy family that takes maps: the part of an image that is most like a class decides."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from tnn_train.heads.base import Head


class BestPlaceHead(Head):
    """Logits are the largest projections onto the weights of each class over all places of the map."""

    family = "best-place"
    takes = "map"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) / in_features**0.5)

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ndhw,cd->nchw", x.float(), self.weight).amax((2, 3))
