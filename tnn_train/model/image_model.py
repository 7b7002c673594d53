"""A backbone and a head, and the normalisation in front of them."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.fields import choose
from tnn_train.heads import HEADS, Head, build_head
from tnn_train.model.backbones import build_backbone
from tnn_train.model.config import ModelConfig

__all__ = ["ImageModel", "Normalize", "build_model", "embed"]

_BATCH = 16


class ImageModel(nn.Module):
    """A classifier: normalised images, float32 ``[N, C, H, W]``, to logits ``[N, classes]``.

    Attributes:
        backbone: Images to embeddings ``[N, D]``, or to maps ``[N, D, h, w]`` if its head takes these.
        head: Embeddings or maps to logits.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def in_final_form(self) -> "ImageModel":
        """Return the model with its head in the form in which it is saved: itself if that is so already."""
        head = self.head.final_form()
        return self if head is self.head else ImageModel(self.backbone, head)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as ``nn.Module.load_state_dict`` does.

        A safetensors file does not tell the versions of modules, which MNASNet asks for: they count as this model's.
        """
        state: Any = OrderedDict(state_dict)
        ours: Any = self.state_dict()
        state._metadata = getattr(state_dict, "_metadata", ours._metadata)
        return super().load_state_dict(state, strict, assign)


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


def build_model(config: ModelConfig, *, is_training: bool = False) -> ImageModel:
    """Build an untrained model.

    Args:
        config: What to build it from.
        is_training: As for `tnn_train.heads.build_head`.

    Raises:
        UsageError: If the configuration names an unknown backbone or head, or a stem that the backbone cannot have.
    """
    choose("head", config.head, HEADS)
    backbone, features = build_backbone(config, HEADS[config.head].takes)
    head = build_head(config.head, features, config.num_classes, config.options, is_training=is_training)
    return ImageModel(backbone, head)


@torch.no_grad()
def embed(backbone: nn.Module, preprocessing: Preprocessing, images: NDArray[np.uint8]) -> Tensor:
    """Return the embeddings of images, float32 ``[n, D]``, or maps ``[n, D, h, w]``.

    Args:
        backbone: Of a model in evaluation mode, on the CPU.
        preprocessing: Of the model.
        images: uint8 ``[n, H, W, C]``.

    Raises:
        UsageError: If an embedding is no finite number.
    """
    normalize = Normalize(preprocessing)
    batches = torch.split(torch.from_numpy(images), _BATCH)
    embeddings: Tensor = torch.cat([backbone(normalize(batch)) for batch in batches])
    if not bool(embeddings.isfinite().all()):
        raise UsageError("embeddings are no finite numbers: the weights of the backbone are too large; train it again")
    return embeddings
