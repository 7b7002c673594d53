"""Lowerings: one file or folder a head family, that rewrites a trained head into exporter-friendly operators.

A lowering is a function from the trained head to a new module. Enter a new one in `LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tnn_export.errors import ExportError
from tnn_export.lowering.folding import folded
from tnn_export.lowering.linear import lower_linear, lower_linear_maps
from tnn_export.lowering.logic import lower_logic
from tnn_export.lowering.lvq import lower_lvq, lower_lvq_maps
from tnn_export.lowering.matching import lower_matching, lower_matching_maps
from tnn_export.lowering.parts import lower_parts, lower_parts_maps
from tnn_export.lowering.tversky.head import lower_tversky
from tnn_export.lowering.tversky.maps import lower_tversky_maps
from tnn_runtime.text import a_head
from tnn_train.errors import NoMapsError
from tnn_train.heads import Head
from tnn_train.model.image_model import ImageModel

__all__ = ["LOWERINGS", "MAPS", "LoweredModel", "lower_head", "lower_maps", "lower_model"]

LOWERINGS: dict[str, Callable[..., nn.Module]] = {
    "linear": lower_linear,
    "tversky": lower_tversky,
    "lvq": lower_lvq,
    "parts": lower_parts,
    "matching": lower_matching,
    "logic": lower_logic,
}
"""For each head family what lowers a trained head of it.

Given the head, it returns a new module from embeddings ``[N, D]`` to logits ``[N, C]``, float32, made of operators that
every exporter and TorchScript know. That of a family with `tnn_train.heads.base.Head.evidence` also takes
``parts=True`` and returns a module that gives a dictionary: ``logits``, and the evidence by its names. TorchScript does
not understand ``from __future__ import annotations``: leave it out of the file with the modules.
"""

MAPS: dict[str, Callable[..., nn.Module]] = {
    "linear": lower_linear_maps,
    "tversky": lower_tversky_maps,
    "lvq": lower_lvq_maps,
    "parts": lower_parts_maps,
    "matching": lower_matching_maps,
}
"""For each head family whose features have places what lowers `tnn_train.heads.base.Head.feature_maps`.

Given the head, it returns a new module from maps ``[N, D, h, w]`` and embeddings ``[N, D]``, or again the maps for a
head that takes these, to feature maps ``[N, F, h, w]``, float32, of the same kind as those of `LOWERINGS`.
"""


class LoweredModel(nn.Module):
    """A model that is ready for export: normalised images, float32 ``[N, C, H, W]``, to what its head returns.

    Attributes:
        backbone: Images to what the head takes, or to the maps ``[N, D, h, w]`` that this is the mean of.
        head: What it takes to logits, or with its parts to a dictionary; see `LOWERINGS`.
        maps: Makes feature maps; see `MAPS`. ``None`` if there shall be none.
        takes_means: Whether the backbone gives maps, and the head takes their means over all places.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, maps: nn.Module | None = None, *, takes_means: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.maps = maps
        self.takes_means = takes_means

    def forward(self, x: Tensor) -> Any:
        """Return what the head makes of the embeddings."""
        x = self.backbone(x)
        return self.head(x.mean((2, 3)) if self.takes_means else x)


def lower_head(head: Head, *, parts: bool = False) -> nn.Module:
    """Return a new module with the head's logits, made of operators that every exporter knows.

    Args:
        head: A trained head; it is not changed.
        parts: Whether the module shall also return what the logits are made of, `Head.evidence`.

    Returns:
        A module without parameters to learn, from embeddings ``[N, D]`` to logits ``[N, C]``, float32; or with
        ``parts`` to a dictionary of the logits and the evidence.

    Raises:
        ExportError: If there is no lowering for this family of heads, or it has no evidence.
    """
    family = getattr(head, "family", type(head).__name__)
    if family not in LOWERINGS:
        raise ExportError(
            f"there is no lowering for the head family {family}; expected one of {', '.join(LOWERINGS)}: add one to "
            "tnn_export.lowering"
        )
    if parts and not head.evidence_meanings:
        raise ExportError(f"{a_head(family)} gives logits alone, nothing that they are made of; leave the parts out")
    lowering = LOWERINGS[family]
    return (lowering(head, parts=True) if parts else lowering(head)).eval().requires_grad_(False)


def lower_maps(head: Head) -> nn.Module:
    """Return a new module that makes feature maps; see `MAPS`.

    Raises:
        ExportError: If the features of the head have no places.
    """
    if head.family not in MAPS:
        raise ExportError(
            f"{a_head(head.family)} has no feature maps: none of its values is found over the places of an image; "
            "leave the output feature_maps out"
        )
    return MAPS[head.family](head)


def lower_model(model: ImageModel, *, parts: bool = False, maps: bool = False) -> LoweredModel:
    """Return a new model, ready for export: the backbone with its batch norms folded, and the lowered head.

    Args:
        model: A trained model; it is not changed.
        parts: As in `lower_head`.
        maps: Whether the model shall also have what feature maps are made of, and what makes them.

    Raises:
        ExportError: As `lower_head` and `lower_maps`; if the backbone has no maps.
    """
    head = lower_head(model.head, parts=parts)
    if maps:
        lowered_maps = lower_maps(model.head)
        try:
            trunk = model.trunk()
        except NoMapsError as error:
            raise ExportError(f"{error}; leave the output feature_maps out, or train one of these") from error
        lowered = LoweredModel(folded(trunk), head, lowered_maps, takes_means=model.head.takes != "map")
    else:
        lowered = LoweredModel(folded(model.backbone), head)
    return lowered.cpu().eval().requires_grad_(False)
