"""Linear classifiers of other programs as checkpoints: a file with a state dict, or torchvision's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import BASELINE
from tnn_train.model.backbones import build_backbone, check_image_size
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.class_names import check_class_names
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import build_model
from tnn_train.model.state_dicts import (
    last_layer,
    load_tensors,
    read_state,
    refuse_without_backbone,
    stem_of,
    take_backbone,
)
from tnn_train.model.weights import imagenet_weights

__all__ = ["TORCHVISION", "Published", "read_classifier", "read_published"]

TORCHVISION = "torchvision:"
"""What the name of a classifier with torchvision's weights starts with."""

_NAMED = 3


@dataclass(frozen=True)
class Published:
    """A classifier with torchvision's weights.

    Args:
        backbone: torchvision's name of it.
        state: Its state dict.
        preprocessing: The size and the normalisation that its weights were measured with.
        class_names: One name for each logit.
        note: What `preprocessing` does in another way than torchvision's own; ``None`` if nothing.
    """

    backbone: str
    state: Mapping[str, Tensor]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    note: str | None


def read_published(name: str) -> Published:
    """Return a classifier with torchvision's default weights, which are downloaded once.

    Args:
        name: torchvision's name of it, such as ``"resnet50"``.

    Raises:
        UsageError: If there are no such weights, they have a licence of their own, or their preprocessing is of
            another kind than `Preprocessing`.
        ArtifactError: If they cannot be downloaded or read.
    """
    state, preset = imagenet_weights(name)
    transforms = preset.transforms()
    if not isinstance(transforms, ImageClassification):
        raise UsageError(
            f"torchvision prepares images for {preset} with {type(transforms).__name__}; expected "
            "ImageClassification, a resize, a crop and a normalisation: give the file of the weights, and say with "
            "--image-size, --mean and --std what it takes"
        )
    (crop,), (shorter,) = transforms.crop_size, transforms.resize_size
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    how = "bilinear" if transforms.interpolation == InterpolationMode.BILINEAR else transforms.interpolation.value
    note = None
    if shorter != crop or how != "bilinear":
        note = (
            f"torchvision scales the shorter side of an image to {shorter} pixels ({how}) and crops {crop}x{crop}; "
            f"here an image is scaled to cover {crop}x{crop} (bilinear) and cropped, so that answers for the same file "
            "may differ a little from torchvision's"
        )
    names = tuple(preset.meta["categories"])
    return Published(name, state, Preprocessing(crop, crop, len(mean), mean, std), names, note)


def read_classifier(
    source: str | Path | Published,
    *,
    backbone: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    samples: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    stem: str = "auto",
    prefix: str | None = None,
    backbone_weights: str | Path | None = None,
) -> Checkpoint:
    """Turn a classifier of torchvision whose last layer is linear into a checkpoint with a linear head.

    Args:
        source: A state dict (``.pth``, ``.pt`` or ``.safetensors``) of the classifier, also below one name, as in
            ``net.fc.weight``, or under the numbers of ``nn.Sequential``; or what `read_published` returned.
        backbone: torchvision's name of the classifier.
        preprocessing: What turned image files into its inputs.
        class_names: One name for each logit.
        samples: Images, uint8 ``[n, H, W, C]`` of the preprocessing's shape.
        labels: Their classes, int64 ``[n]``; ``None`` where they are not known.
        stem: That of the backbone; ``"auto"`` for the one that the weights have.
        prefix: The name of the last layer; found if ``None``.
        backbone_weights: The state dict of the backbone if ``source`` holds the last layer alone.

    Raises:
        UsageError: If the last layer, the backbone or the class names do not fit together.
        ArtifactError: If a file does not exist, cannot be read or holds no state dict, or a value is no finite number.
    """
    published = isinstance(source, Published)
    name = f"torchvision's {source.backbone}" if isinstance(source, Published) else str(source)
    state = dict(source.state) if isinstance(source, Published) else _read(Path(source))
    trunk, features = build_backbone(ModelConfig(backbone, stem="imagenet"))
    last = last_layer(trunk)
    if backbone_weights is not None:
        others = _read(Path(backbone_weights))
        state |= {key: value for key, value in others.items() if not key.startswith(f"{last}.")}
    tensors = take_backbone(state, trunk)
    weight, bias = _take_last(state, last if prefix is None else prefix, name, is_given=prefix is not None)
    refuse_without_backbone({**tensors, **state}, name, backbone_weights)
    place, rows, columns = weight.name, *weight.value.shape
    if columns != features:
        raise UsageError(
            f"{place} of {name} is [{rows}, {columns}], and backbone {backbone} gives embeddings of {features} values; "
            "choose the backbone that it was trained with"
        )
    if rows < 2:
        raise UsageError(
            f"{place} of {name} is [{rows}, {columns}], a single logit; expected a row for each of at least two classes"
        )
    if len(class_names) != rows:
        raise UsageError(
            f"got {len(class_names)} class names for the {rows} rows of {place} in {name}; expected one for each: give "
            "--class-names FILE with one a line, in the order of the logits"
        )
    check_class_names(class_names)
    config = ModelConfig(
        backbone,
        head=BASELINE,
        num_classes=rows,
        in_channels=preprocessing.channels,
        stem=stem_of(tensors) if stem == "auto" else stem,
    )
    check_image_size(config, preprocessing.height, preprocessing.width)
    model = build_model(config).eval()
    complaint = f"weights of {backbone_weights or name} do not fit backbone {backbone}"
    load_tensors(model.backbone, {**tensors, **state}, complaint)
    head = {"weight": weight.value, "bias": torch.zeros(rows) if bias is None else bias.value}
    load_tensors(model.head, head, f"the last layer of {name} does not fit")
    origin = {"source": f"{TORCHVISION}{backbone}"} if published else {"file": Path(name).name, "source": BASELINE}
    return Checkpoint(model, config, preprocessing, tuple(class_names), samples, {}, {"imported": origin}, labels)


@dataclass(frozen=True)
class _Named:
    name: str
    value: Tensor


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; expected a .pth, .pt or .safetensors file with a state dict")
    return read_state(path)


def _take_last(state: dict[str, Tensor], layer: str, source: str, *, is_given: bool) -> tuple[_Named, _Named | None]:
    """Remove the weight and the bias of the last layer from what is left of a state dict without its backbone.

    Args:
        state: What is left.
        layer: What torchvision calls the layer, or what the user does.
        source: What to call the state dict in an error.
        is_given: Whether it was the user who named it.
    """
    matrices = [name for name, value in state.items() if name.rpartition(".")[2] == "weight" and value.ndim == 2]
    wanted = f"{layer}.weight" if layer else "weight"
    named = [name for name in matrices if name == wanted or (not is_given and name.endswith(f".{wanted}"))]
    found = named or ([] if is_given else matrices)
    if len(found) != 1:
        left = f": {', '.join(sorted(state)[:_NAMED])}{', ...' if len(state) > _NAMED else ''}" if state else " nothing"
        raise UsageError(
            f"{source} has {len(found) or 'no'} linear layer{'s' if len(found) > 1 else ''} that may be its last "
            f"(besides the backbone it holds{left}); expected {wanted} [classes, features]"
            + ("; name the layer with --prefix (prefix=)" if matrices else "")
        )
    (name,) = found
    weight = _Named(name, state.pop(name).float())
    place = name.removesuffix("weight") + "bias"
    if place not in state:
        return weight, None
    bias = _Named(place, state.pop(place).float())
    if bias.value.shape != weight.value.shape[:1]:
        raise UsageError(
            f"{bias.name} of {source} is {list(bias.value.shape)}, and {weight.name} {list(weight.value.shape)}; "
            "expected one value for each row"
        )
    return weight, bias
