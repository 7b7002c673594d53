"""A backbone and a head, and the normalisation in front of them."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tnn_runtime.preprocess import Preprocessing
from tnn_train.config import ModelConfig, choose
from tnn_train.heads import build_head

__all__ = ["BACKBONES", "ImageModel", "Normalize", "build_model"]

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    name: getattr(torchvision.models, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
}


class ImageModel(nn.Module):
    """A classifier: normalised images, float32 ``[N, C, H, W]``, to logits ``[N, classes]``.

    Attributes:
        backbone: Images to embeddings ``[N, D]``.
        head: Embeddings to logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


class Normalize(nn.Module):
    """Images as decoded, uint8 ``[N, H, W, C]``, to what `ImageModel` takes: float32 ``[N, C, H, W]``, normalised.

    The cast comes before the transposition, since TensorRT does not transpose uint8.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(images / 255 - mean) / std`` in channel-first order."""
        return images.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift


def build_model(config: ModelConfig) -> ImageModel:
    """Build an untrained model.

    Raises:
        UsageError: If the configuration names an unknown backbone, head or measure.
    """
    choose("backbone", config.backbone, BACKBONES)
    backbone: Any = BACKBONES[config.backbone]()
    features = backbone.fc.in_features
    backbone.fc = nn.Identity()
    if config.stem != "imagenet":
        backbone.conv1 = nn.Conv2d(config.in_channels, 64, kernel_size=3, padding=1, bias=False)
        backbone.maxpool = nn.Identity()
    elif config.in_channels != 3:
        backbone.conv1 = nn.Conv2d(config.in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return ImageModel(backbone, build_head(features, config))
