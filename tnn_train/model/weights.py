"""Weights to start a training from: of ImageNet, of a file, or of a checkpoint of this project."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from tnn_runtime.errors import ArtifactError, UsageError
from tnn_train.model.backbones import check_backbone, has_resnet_stem
from tnn_train.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Checkpoint, load_checkpoint, refuse_run
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel
from tnn_train.model.state_dicts import last_layer, load_tensors, read_state, stem_of, unwrap
from tnn_train.statistics import IMAGENET as OF_IMAGENET
from tnn_train.statistics import Statistics

__all__ = ["IMAGENET", "SMALL_IMAGE", "imagenet_weights", "load_weights", "published_statistics", "resolve_stem"]

IMAGENET = "imagenet"
"""The source that stands for torchvision's weights, trained on ImageNet."""

SMALL_IMAGE = 96
"""Images of fewer pixels a side get the small stem, unless weights decide."""


def load_weights(model: ImageModel, config: ModelConfig, source: str) -> Statistics | None:
    """Give the backbone of a model the weights of another training; its head stays as it is.

    Weights of the last layer are left out; all others must fit. Where the model takes grey images and the weights are
    for RGB, those of the first convolution are summed over the channels: a grey image is an RGB one of three equal
    channels, on which the sum gives what the three gave.

    Args:
        model: The model; if the weights do not fit, it is not changed.
        config: What it was built from.
        source: ``"imagenet"``, which torchvision downloads once; a file (``.pth``, ``.pt`` or ``.safetensors``) with a
            state dict of torchvision's model, also below ``state_dict`` or ``model``, and with the prefix ``module.``
            or ``backbone.``; or a checkpoint folder of this project with the same backbone.

    Returns:
        The normalisation that belongs to the weights: that of a checkpoint, or torchvision's for this backbone.
        ``None`` for a state dict of a backbone of grey images: torchvision has none, and the file does not tell.

    Raises:
        UsageError: If there are no such weights, or they do not fit the backbone and its stem.
        ArtifactError: If they cannot be downloaded or read.
    """
    backbone = model.backbone
    if source == IMAGENET and stem_of(backbone.state_dict()) == "small":
        raise UsageError(
            "weights of ImageNet do not fit the small stem; choose --stem imagenet (stem='imagenet') and an image size "
            "of 96 or more, better 224"
        )
    found, statistics = _read(config, source)
    last = last_layer(backbone)
    found = {name: value for name, value in found.items() if name.rpartition(".")[0] != last}
    first = next((f"{name}.weight" for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)), "")
    channels = found[first].shape[1:2] if first in found else (3,)
    if config.in_channels == 1 and channels == (3,):
        found[first] = found[first].float().sum(1, keepdim=True)
    load_tensors(backbone, found, f"weights of {source} do not fit backbone {config.backbone}")
    if channels == (1,) and len(statistics.mean) == 3:
        return None
    return statistics if config.in_channels == 3 else statistics.grey()


def resolve_stem(config: ModelConfig, height: int, width: int, source: str | None = None) -> str:
    """Return the stem for which ``"auto"`` stands: the one of the weights, or else by the size of the images.

    Args:
        config: The backbone and the stem; one other than ``"auto"`` is returned as it is.
        height: Rows of the images, in pixels.
        width: Columns of the images, in pixels.
        source: What `load_weights` shall load; ``None`` if nothing.

    Raises:
        UsageError: As `load_weights`, or if there is no such backbone.
        ArtifactError: As `load_weights`.
    """
    if config.stem != "auto":
        return config.stem
    if source == IMAGENET:
        return "imagenet"
    if source is not None:
        return stem_of(_read(config, source)[0])
    return "small" if max(height, width) < SMALL_IMAGE and has_resnet_stem(config.backbone) else "imagenet"


def _read(config: ModelConfig, source: str) -> tuple[dict[str, Tensor], Statistics]:
    """Return weights by their names in the backbone, and their statistics."""
    path = Path(source)
    if source == IMAGENET:
        return imagenet_weights(config.backbone)[0], published_statistics(config.backbone)
    refuse_run(path)
    if path.is_dir():
        checkpoint = load_checkpoint(path)
        if checkpoint.config.backbone != config.backbone:
            raise UsageError(
                f"{path} has the backbone {checkpoint.config.backbone}; expected {config.backbone}, as the model has"
            )
        return dict(checkpoint.model.backbone.state_dict()), _statistics_of(path, checkpoint)
    if not path.exists():
        raise UsageError(
            f"weights {source!r} do not exist; expected {IMAGENET}, a .pth, .pt or .safetensors file, or a checkpoint "
            "folder"
        )
    state = _without_prefix(read_state(path))
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        return state, _statistics_of(path.parent, load_checkpoint(path.parent))
    usual = published_statistics(config.backbone)
    return state, dataclasses.replace(usual, origin=f"{usual.origin}, as {path} does not tell", is_guess=True)


def published_statistics(name: str) -> Statistics:
    """Return how images are normalised for torchvision's weights of a backbone: ImageNet's, but for a few of them.

    Args:
        name: torchvision's name of it; ImageNet's where torchvision has no weights for it.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        return OF_IMAGENET
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    found = Statistics(tuple(transforms.mean), tuple(transforms.std), f"torchvision's for {name}")
    return OF_IMAGENET if found == OF_IMAGENET else found


def imagenet_weights(name: str) -> tuple[dict[str, Tensor], WeightsEnum]:
    """Return torchvision's weights of a classifier, which are downloaded once, and what torchvision says of them.

    Raises:
        UsageError: If there are no such weights, or they have a licence of their own.
        ArtifactError: If they cannot be downloaded or read.
    """
    check_backbone(name)
    if name not in torchvision.models.list_models():
        raise UsageError(f"torchvision has no weights for backbone {name}; give a file or train from scratch")
    preset = torchvision.models.get_model_weights(name).DEFAULT
    if licence := preset.meta.get("license"):
        raise UsageError(
            f"torchvision's weights for {name} have a licence of their own ({licence}); if it suits you, download them "
            "and give the file"
        )
    try:
        content = preset.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:
        path = Path(torch.hub.get_dir()) / "checkpoints" / preset.url.rpartition("/")[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ArtifactError(
            f"{preset.url} could not be loaded ({reason}); download it where there is internet and put it at {path}"
        ) from error
    return unwrap(content, preset.url), preset


def _statistics_of(folder: Path, checkpoint: Checkpoint) -> Statistics:
    preprocessing = checkpoint.preprocessing
    return Statistics(preprocessing.mean, preprocessing.std, f"those of the checkpoint {folder}")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("backbone.") for name in state):
        ours = {name: value for name, value in state.items() if name.partition(".")[0] not in ("head", "images")}
        return {name.removeprefix("backbone."): value for name, value in ours.items()}
    return state
