"""Classification heads: one file each.

A head is a module that turns embeddings ``[N, D]`` into logits ``[N, C]``, with a constructor
``Head.from_config(in_features, config)``. Enter a new one in `HEADS`, and its lowering in `tnn_export.lowering`.
"""

from __future__ import annotations

from torch import nn

from tnn_train.fields import choose
from tnn_train.heads.linear import LinearHead
from tnn_train.heads.tversky.head import TverskyHead
from tnn_train.model.config import ModelConfig

__all__ = ["HEADS", "LinearHead", "TverskyHead", "build_head"]

HEADS: dict[str, type[LinearHead] | type[TverskyHead]] = {"linear": LinearHead, "tversky": TverskyHead}


def build_head(in_features: int, config: ModelConfig) -> nn.Module:
    """Build the head that ``config`` names, for embeddings of ``in_features`` values.

    Raises:
        UsageError: If there is no such head.
    """
    choose("head", config.head, HEADS)
    return HEADS[config.head].from_config(in_features, config)
