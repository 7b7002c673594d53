"""What every artifact contains: images as decoded in, logits and embedding out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tnn_runtime.preprocess import Preprocessing
from tnn_train.models import ImageModel, Normalize

__all__ = ["ServingModel"]


class ServingModel(nn.Module):
    """A model with its normalisation: uint8 images ``[N, H, W, C]`` to ``(logits [N, classes], embedding [N, D])``."""

    def __init__(self, model: ImageModel, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.backbone = model.backbone
        self.head = model.head
        self.input_shape = preprocessing.shape

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and embedding."""
        embedding = self.backbone(self.normalize(images))
        return self.head(embedding), embedding

    def example(self) -> Tensor:
        """Return a batch of two blank images; two, since exporters take a batch of one for a constant."""
        return torch.zeros(2, *self.input_shape, dtype=torch.uint8)
