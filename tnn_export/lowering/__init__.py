"""Lowerings: one file each, that rewrites one trained head into exporter-friendly operators.

A lowering is a function from the trained head to a new `LoweredHead`. Enter a new one in `LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tnn_export.errors import ExportError
from tnn_export.lowering.folding import folded
from tnn_export.lowering.linear import lower_linear
from tnn_export.lowering.tversky.head import lower_tversky
from tnn_train.heads import LinearHead, TverskyHead
from tnn_train.model.image_model import ImageModel

__all__ = ["LOWERINGS", "lower_head", "lower_model"]

LOWERINGS: dict[type[nn.Module], Callable[..., nn.Module]] = {LinearHead: lower_linear, TverskyHead: lower_tversky}


def lower_head(head: nn.Module, *, parts: bool = False) -> nn.Module:
    """Return a new module with the head's logits, made of operators that every exporter knows.

    Args:
        head: A trained head; it is not changed.
        parts: Whether the module shall also return the similarities to each prototype and what they are made of.

    Returns:
        A module whose prototype side is constant, from embeddings ``[N, D]`` to logits ``[N, C]``, float32, or to
        `tnn_export.lowering.tversky.head.HeadOutputs` with ``parts``.

    Raises:
        ExportError: If there is no lowering for this kind of head, or it has no parts.
    """
    if type(head) not in LOWERINGS:
        known = ", ".join(kind.__name__ for kind in LOWERINGS)
        raise ExportError(
            f"no lowering for a head of type {type(head).__name__}; expected one of {known}, or add one to "
            "tnn_export.lowering"
        )
    if parts and not isinstance(head, TverskyHead):
        raise ExportError(f"a head of type {type(head).__name__} has no parts; only a Tversky head has them")
    lowering = LOWERINGS[type(head)]
    return (lowering(head, parts=True) if parts else lowering(head)).eval().requires_grad_(False)


def lower_model(model: ImageModel, *, parts: bool = False) -> ImageModel:
    """Return a new model, ready for export: the backbone with its batch norms folded, and the lowered head.

    Args:
        model: A trained model; it is not changed.
        parts: As in `lower_head`.
    """
    return ImageModel(folded(model.backbone), lower_head(model.head, parts=parts)).cpu().eval().requires_grad_(False)
