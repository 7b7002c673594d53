"""Lowerings: one file each, that rewrites one trained head into exporter-friendly operators.

A lowering is a function from the trained head to a new `LoweredHead`. Enter a new one in `LOWERINGS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from tnn_export.errors import ExportError
from tnn_export.lowering.linear import lower_linear
from tnn_export.lowering.tversky import lower_tversky
from tnn_train.heads import LinearHead, TverskyHead
from tnn_train.models import ImageModel

__all__ = ["LOWERINGS", "lower_head", "lower_model"]

LOWERINGS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {LinearHead: lower_linear, TverskyHead: lower_tversky}


def lower_head(head: nn.Module) -> nn.Module:
    """Return a new module with the head's logits, made of operators that every exporter knows.

    Args:
        head: A trained head; it is not changed.

    Returns:
        A module from embeddings ``[N, D]`` to logits ``[N, C]``, float32, whose prototype side is constant.

    Raises:
        ExportError: If there is no lowering for this kind of head.
    """
    if type(head) not in LOWERINGS:
        known = ", ".join(kind.__name__ for kind in LOWERINGS)
        raise ExportError(
            f"no lowering for a head of type {type(head).__name__}; expected one of {known}, or add one to "
            "tnn_export.lowering"
        )
    return LOWERINGS[type(head)](head).eval().requires_grad_(False)


def lower_model(model: ImageModel) -> ImageModel:
    """Return a new model, ready for export: a copy of the backbone in evaluation mode, and the lowered head."""
    return ImageModel(copy.deepcopy(model.backbone), lower_head(model.head)).cpu().eval().requires_grad_(False)
