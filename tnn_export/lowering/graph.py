"""What every artifact contains: images as decoded in, logits and embedding out, and what else was asked for."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from tnn_export.errors import ExportError
from tnn_export.lowering import MAPS, lower_model
from tnn_runtime.bundle.manifest import FEATURE_MAPS
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.text import a_head
from tnn_train.fields import choose
from tnn_train.heads import HEADS
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = ["Served", "ServingModel", "extra_outputs"]

_ALWAYS = ("logits", "embedding")
_OF_ALL = ("probabilities", FEATURE_MAPS)


def extra_outputs(*families: str) -> tuple[str, ...]:
    """Return what artifacts return on request: the softmax of the logits, feature maps, the evidence of head families.

    Args:
        families: Keys of `tnn_train.heads.HEADS`.
    """
    of_all = [name for name in _OF_ALL if name != FEATURE_MAPS or not MAPS.keys().isdisjoint(families)]
    return tuple(dict.fromkeys([*of_all, *(name for family in families for name in HEADS[family].evidence_meanings)]))


class Served(nn.Module):
    """What artifacts are made of: uint8 images ``[N, H, W, C]`` to named outputs, float32.

    Attributes:
        outputs: The names of the outputs, in their order.
        input_shape: Height, width and channels of the images.
    """

    outputs: list[str]
    input_shape: tuple[int, int, int]

    def example(self) -> Tensor:
        """Return a batch of two blank images; two, since exporters take a batch of one for a constant."""
        return torch.zeros(2, *self.input_shape, dtype=torch.uint8)

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shape of each output in its order, ``None`` for the batch size."""
        with torch.inference_mode():
            return {name: (None, *value.shape[1:]) for name, value in self(self.example()).items()}


class ServingModel(Served):
    """A lowered model with its normalisation: uint8 images ``[N, H, W, C]`` to named outputs, float32.

    Args:
        model: The trained model; it is not changed.
        preprocessing: The normalisation.
        extra: Which of the `extra_outputs` of its head to return, too.
        dtype: What the backbone computes in; everything else stays in float32.

    Raises:
        ExportError: If the head cannot be lowered, or it or the backbone has no such outputs.
        UsageError: If an output is unknown.
    """

    has_parts: Final[bool]
    has_maps: Final[bool]
    takes_means: Final[bool]

    def __init__(
        self,
        model: ImageModel,
        preprocessing: Preprocessing,
        extra: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        possible = (*_OF_ALL, *model.head.evidence_meanings)
        for name in extra:
            choose("output", name, extra_outputs(*HEADS))
            if name not in possible:
                has = [one for one in possible if one != FEATURE_MAPS or model.head.has_feature_maps]
                raise ExportError(
                    f"{a_head(model.head.family)} has no output {name}; it has {', '.join(has)}: leave {name} out"
                )
        self.has_parts = any(name not in _OF_ALL for name in extra)
        self.has_maps = FEATURE_MAPS in extra
        self.outputs = [*_ALWAYS, *(name for name in possible if name in extra)]
        lowered = lower_model(model, parts=self.has_parts, maps=self.has_maps)
        self.takes_means = lowered.takes_means
        self.normalize = Normalize(preprocessing)
        self.backbone = lowered.backbone.to(dtype)
        self.head = lowered.head
        self.maps = lowered.maps or nn.Identity()
        self.dtype = dtype
        self.input_shape = preprocessing.shape
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs, each ``[N, ...]``, by their names."""
        # Contiguous: an image that is channels-last in memory makes the exporter spell out strides after poolings.
        normalized = self.normalize(images).to(self.dtype).contiguous()
        embedding = self.backbone(normalized).to(torch.float32)
        places = embedding
        if self.takes_means:
            embedding = places.mean((2, 3))
        if self.has_parts:
            values: dict[str, Tensor] = self.head(embedding)
        else:
            values = {"logits": self.head(embedding)}
        values["embedding"] = embedding
        if self.has_maps:
            values["feature_maps"] = self.maps(places, embedding)
        values["probabilities"] = torch.softmax(values["logits"], 1)
        return {name: values[name] for name in self.outputs}
