"""Backbones of torchvision with few layers: they do all that whole ones do, and export in a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models import ConvNeXt, EfficientNet, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import Bottleneck

SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "convnext_tiny": lambda: ConvNeXt([CNBlockConfig(96, 192, 1), CNBlockConfig(192, None, 1)]),
    "resnet50": lambda: ResNet(Bottleneck, [1, 1, 1, 1]),
    "efficientnet_b0": lambda: EfficientNet(
        [MBConvConfig(1, 3, 1, 32, 16, 1, 1.0, 1.0), MBConvConfig(6, 5, 2, 16, 24, 2, 1.0, 1.0)], 0.2, last_channel=1280
    ),
    "swin_t": lambda: SwinTransformer([4, 4], 96, [2, 2], [3, 6], [7, 7]),
    "vit_b_16": lambda: VisionTransformer(224, 16, 1, 12, 768, 3072),
}
"""For some names of ``BACKBONES`` what makes the classifier."""
