"""Lowerings: one file or folder a head family, that rewrites a trained head into exporter-friendly operators.

A lowering is a function from the trained head to a new module. Enter a new one in `LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tnn_export.errors import ExportError
from tnn_export.lowering.folding import folded
from tnn_export.lowering.linear import lower_linear
from tnn_export.lowering.tversky.head import lower_tversky
from tnn_train.heads import Head
from tnn_train.model.image_model import ImageModel

__all__ = ["LOWERINGS", "LoweredModel", "lower_head", "lower_model"]

LOWERINGS: dict[str, Callable[..., nn.Module]] = {"linear": lower_linear, "tversky": lower_tversky}
"""For each head family what lowers a trained head of it.

Given the head, it returns a new module from embeddings ``[N, D]`` to logits ``[N, C]``, float32, made of operators that
every exporter and TorchScript know. That of a family with `tnn_train.heads.base.Head.evidence` also takes
``parts=True`` and returns a module that gives a dictionary: ``logits``, and the evidence by its names. TorchScript does
not understand ``from __future__ import annotations``: leave it out of the file with the modules.
"""


class LoweredModel(nn.Module):
    """A model that is ready for export: normalised images, float32 ``[N, C, H, W]``, to what its head returns.

    Attributes:
        backbone: Images to embeddings ``[N, D]``.
        head: Embeddings to logits, or with its parts to a dictionary; see `LOWERINGS`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Any:
        """Return what the head makes of the embeddings."""
        return self.head(self.backbone(x))


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
        raise ExportError(f"a {family} head gives logits alone, nothing that they are made of; leave the parts out")
    lowering = LOWERINGS[family]
    return (lowering(head, parts=True) if parts else lowering(head)).eval().requires_grad_(False)


def lower_model(model: ImageModel, *, parts: bool = False) -> LoweredModel:
    """Return a new model, ready for export: the backbone with its batch norms folded, and the lowered head.

    Args:
        model: A trained model; it is not changed.
        parts: As in `lower_head`.
    """
    lowered = LoweredModel(folded(model.backbone), lower_head(model.head, parts=parts))
    return lowered.cpu().eval().requires_grad_(False)
