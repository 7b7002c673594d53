"""Backbones: torchvision's classifiers of images without their last layer, and the pixels themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch
import torchvision
from torch import nn

from tnn_runtime.errors import UsageError
from tnn_train.errors import NoMapsError
from tnn_train.model.config import PIXELS, ModelConfig
from tnn_train.model.pooling import at_each_place

__all__ = ["BACKBONES", "build_backbone", "check_backbone", "check_image_size", "embedding_size", "has_resnet_stem"]

_AUXILIARY = "its auxiliary classifiers make it return several outputs"
_CONVOLUTION = "its last layer is a convolution, and only a linear one can be exchanged for a head"
_UNUSABLE = {
    "googlenet": _AUXILIARY,
    "inception_v3": _AUXILIARY,
    "squeezenet1_0": _CONVOLUTION,
    "squeezenet1_1": _CONVOLUTION,
}

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    name: partial(torchvision.models.get_model, name)
    for name in torchvision.models.list_models(module=torchvision.models)
    if name not in _UNUSABLE
}
"""For each name what makes the classifier, untrained: RGB images to logits, its linear last layer registered last."""

_SIDES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)


def check_backbone(name: str) -> None:
    """Make sure that there is a backbone of this name.

    Raises:
        UsageError: If not, with the nearest names or the reason why torchvision's model cannot be used.
    """
    if name in BACKBONES or name == PIXELS:
        return
    if name in _UNUSABLE:
        raise UsageError(f"backbone {name} cannot be used: {_UNUSABLE[name]}; choose another, such as resnet18")
    if name in torchvision.models.list_models():
        raise UsageError(f"{name} is quantised or does not classify single images; choose another, such as resnet18")
    near = get_close_matches(str(name), [PIXELS, *BACKBONES])
    raise UsageError(
        f"unknown backbone {name!r}; "
        + (f"the nearest are {', '.join(near)}" if near else f"choose {PIXELS} or a classifier of torchvision")
    )


def build_backbone(config: ModelConfig, takes: str = "embedding") -> tuple[nn.Module, int]:
    """Build an untrained backbone.

    Its embedding is what the classifier's last layer got, and its map what this would be of each place alone, as
    `tnn_train.model.pooling.at_each_place` has it. One that takes grey images computes what the RGB one would from
    three equal channels. The embedding of `PIXELS` is the values of all pixels, channel by channel and row by row, and
    its map the image.

    Args:
        config: The backbone, its stem and its channels.
        takes: What the head takes, ``"embedding"`` or ``"map"``.

    Returns:
        A module from images ``[N, in_channels, H, W]`` to embeddings ``[N, D]`` or maps ``[N, D, h, w]``, and D.

    Raises:
        UsageError: If there is no such backbone, it cannot have the stem, or it has no map.
    """
    check_backbone(config.backbone)
    if config.backbone == PIXELS:
        return _pixels(config, takes)
    backbone = BACKBONES[config.backbone]()
    name, last = list(backbone.named_modules())[-1]
    _, convolution = _first_convolution(backbone)
    if not isinstance(last, nn.Linear) or convolution is None or convolution.in_channels != 3:
        raise UsageError(
            f"backbone {config.backbone} ends with {type(last).__name__} and starts with {convolution}; expected "
            "a Linear, registered last, and a Conv2d of 3 channels, registered first"
        )
    backbone.set_submodule(name, nn.Identity())
    small = config.stem == "small" or (config.stem == "auto" and _resnet_stem(backbone))
    if small and not _resnet_stem(backbone):
        raise UsageError(f"backbone {config.backbone} has no small stem, only ResNets have; choose the stem imagenet")
    if small:
        backbone.conv1 = nn.Conv2d(config.in_channels, convolution.out_channels, kernel_size=3, padding=1, bias=False)
        backbone.maxpool = nn.Identity()
    elif config.in_channels == 1:
        convolution.weight = nn.Parameter(convolution.weight.detach().sum(1, keepdim=True))
        convolution.in_channels = 1
    return _mapped(backbone, config.backbone) if takes == "map" else backbone, last.in_features


def embedding_size(config: ModelConfig, takes: str = "embedding") -> int:
    """Return D, the size of the embeddings of a backbone, or of its maps at each place.

    Args:
        config: As for `build_backbone`.
        takes: As for `build_backbone`.

    Raises:
        UsageError: As `build_backbone`.
    """
    return _on_meta(config, takes)[1]


def has_resnet_stem(name: str) -> bool:
    """Return whether a backbone starts with ``conv1`` and ``maxpool``, so that it can have the stem ``"small"``.

    Raises:
        UsageError: If there is no such backbone.
    """
    return name != PIXELS and _resnet_stem(_on_meta(ModelConfig(name, stem="imagenet"))[0])


def check_image_size(config: ModelConfig, height: int, width: int) -> None:
    """Make sure that a backbone takes images of this size, by running it without data on torch's meta device.

    Args:
        config: The backbone, its stem and its channels.
        height: Rows of the images, in pixels.
        width: Columns of the images, in pixels.

    Raises:
        UsageError: If it does not, with the size that it takes; and as `build_backbone`.
    """
    if config.backbone == PIXELS:
        return
    backbone = _on_meta(config)[0].eval()
    failure = _failure(backbone, config.in_channels, height, width)
    if failure is None:
        return
    sides = [side for side in _SIDES if _failure(backbone, config.in_channels, side, side) is None]
    larger = " or larger" if len(sides) > 1 else ""
    expected = f"{sides[0]}x{sides[0]}{larger}" if sides else f"a size that it takes ({failure})"
    raise UsageError(
        f"backbone {config.backbone} does not take images of {height}x{width} pixels; expected {expected}: choose "
        "another --image-size (image_size=) or backbone"
    )


def _pixels(config: ModelConfig, takes: str) -> tuple[nn.Module, int]:
    if config.stem == "small":
        raise UsageError(f"backbone {PIXELS} has no stem; leave --stem (stem=) out")
    if takes == "map":
        return nn.Identity(), config.in_channels
    if not config.image_size:
        raise UsageError(f"backbone {PIXELS} has an embedding for each image size; give image_size=, rows and columns")
    return nn.Flatten(), config.in_channels * math.prod(config.image_size)


def _mapped(backbone: nn.Module, name: str) -> nn.Module:
    """Return a backbone that gives maps; its last layer is gone, and weights keep their names."""
    try:
        return at_each_place(backbone)
    except NoMapsError as error:
        raise UsageError(
            f"the head takes maps, and backbone {name} has none ({error}); choose one that pools its places at the "
            "end: a ResNet, RegNet, DenseNet, EfficientNet, MobileNet, ConvNeXt, Swin or vision transformer"
        ) from error


def _failure(backbone: nn.Module, channels: int, height: int, width: int) -> Exception | None:
    try:
        with torch.inference_mode():
            backbone(torch.empty(2, channels, height, width, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return error
    return None


def _on_meta(config: ModelConfig, takes: str = "embedding") -> tuple[nn.Module, int]:
    """Return what `build_backbone` does, without data."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build_backbone(config, takes)
        except NotImplementedError:  # RegNets find the widths of their layers with tensors, which need data.
            backbone, size = build_backbone(config, takes)
            return backbone.to("meta"), size


def _resnet_stem(backbone: nn.Module) -> bool:
    return _first_convolution(backbone)[0] == "conv1" and hasattr(backbone, "maxpool")


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d | None]:
    return next(((name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)), ("", None))
