"""A backbone and a head, and the normalisation in front of them."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.fields import choose
from tnn_train.heads import HEADS, Head, build_head
from tnn_train.heads.base import SAMPLES
from tnn_train.model.backbones import build_backbone
from tnn_train.model.config import ModelConfig
from tnn_train.model.learned_images import LearnedImages
from tnn_train.model.pooling import unpooled

__all__ = ["ImageModel", "LearningModel", "Normalize", "build_model", "embed"]

_BATCH = 16


class ImageModel(nn.Module):
    """A classifier: normalised images, float32 ``[N, C, H, W]``, to logits ``[N, classes]``.

    Attributes:
        backbone: Images to embeddings ``[N, D]``, or to maps ``[N, D, h, w]`` if its head takes these.
        head: Embeddings or maps to logits.
        images: What parameters of the head were learned as, for people to see; ``None`` if they were not.
    """

    def __init__(self, backbone: nn.Module, head: Head, images: LearnedImages | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``."""
        return self.answer(x)[0]

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, classes]``, and what the head made them of: embeddings ``[N, D]``, or maps."""
        embeddings = self.backbone(x)
        return self.head(embeddings), embeddings

    def trunk(self) -> nn.Module:
        """Return what gives maps ``[N, D, h, w]`` of images: the backbone, without its mean if it takes one.

        Raises:
            NoMapsError: If the head takes embeddings, and these are no means of maps.
        """
        return self.backbone if self.head.takes == "map" else unpooled(self.backbone)

    def taken(self, maps: Tensor) -> Tensor:
        """Return what the head takes, of maps that `trunk` gives: the maps, or their means over all places."""
        return maps if self.head.takes == "map" else maps.mean((2, 3))

    def in_final_form(self) -> "ImageModel":
        """Return the model with its head in the form in which it is saved: itself if that is so already."""
        head = self.head.final_form()
        return self if head is self.head else ImageModel(self.backbone, head)

    def settled(self) -> "ImageModel":
        """Return the model with constants in place of all that is computed from learned images; itself if it is."""
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as ``nn.Module.load_state_dict`` does.

        A safetensors file does not tell the versions of modules, which MNASNet asks for: they count as this model's.
        """
        state: Any = OrderedDict(state_dict)
        ours: Any = self.state_dict()
        state._metadata = getattr(state_dict, "_metadata", ours._metadata)
        return super().load_state_dict(state, strict, assign)


class LearningModel(ImageModel):
    """A model in training, parameters of whose head follow from learned images, anew for each batch.

    The modules are those of the model; these parameters of its head are not trained.

    Args:
        model: A model with learned images.
    """

    images: LearnedImages

    def __init__(self, model: ImageModel) -> None:
        super().__init__(model.backbone, model.head, model.images)
        for name in self.images.counts:
            self.head.get_parameter(name).requires_grad_(False)

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, classes]`` and embeddings ``[N, D]``.

        In training, images that are like the data are embedded as these are, with the statistics of their batch: they
        learn faster so. For others these would differ too much from the running ones, which the export has.
        """
        embeddings = self.backbone(x)
        own_statistics = self.training and self.head.start_images == SAMPLES
        parameters = self.head.from_images(self.images(self.backbone, own_statistics=own_statistics))
        return functional_call(self.head, parameters, (embeddings,)), embeddings

    def in_final_form(self) -> ImageModel:
        """Return the model as it is saved and exported: `settled`."""
        return self.settled()

    @torch.no_grad()
    def settled(self) -> ImageModel:
        """Return the model with a head whose parameters are what the images give now."""
        head = copy.deepcopy(self.head)
        for name, values in head.from_images(self.images(self.backbone)).items():
            head.get_parameter(name).requires_grad_(True).copy_(values)
        return ImageModel(self.backbone, head, self.images)


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
    if not HEADS[config.head].learns_images(config.options):
        return ImageModel(backbone, head)
    height, width = config.image_size
    return ImageModel(backbone, head, LearnedImages(head.image_counts, (config.in_channels, height, width)))


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
