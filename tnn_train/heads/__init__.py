"""Classification heads: one file or folder a family, each with an entry in `HEADS`.

What a family has to say is in `tnn_train.heads.base`.
"""

from __future__ import annotations

from typing import Any

from tnn_train.fields import choose
from tnn_train.heads.base import Head
from tnn_train.heads.linear import LinearHead
from tnn_train.heads.logic.head import LogicHead
from tnn_train.heads.lvq.head import LvqHead
from tnn_train.heads.matching.head import MatchingHead
from tnn_train.heads.parts.head import PartsHead
from tnn_train.heads.tversky.head import TverskyHead

__all__ = [
    "BASELINE",
    "DEFAULT",
    "HEADS",
    "Head",
    "LinearHead",
    "LogicHead",
    "LvqHead",
    "MatchingHead",
    "PartsHead",
    "TverskyHead",
    "build_head",
]

HEADS: dict[str, type[Head]] = {
    head.family: head for head in (LinearHead, TverskyHead, LvqHead, PartsHead, MatchingHead, LogicHead)
}
"""The families by name."""

DEFAULT, BASELINE = TverskyHead.family, LinearHead.family
"""What is trained unless something else is asked for, and what it is compared with."""


def build_head(
    family: str, in_features: int, num_classes: int, options: Any = None, *, is_training: bool = False
) -> Head:
    """Build an untrained head.

    Args:
        family: A key of `HEADS`.
        in_features: D, the size of an embedding, or of a map at each place.
        num_classes: C, the number of logits.
        options: The family's own configuration; ``None`` for its defaults, or if it has none.
        is_training: Whether to build the head that a training begins with, which may differ from what it leads to.

    Raises:
        UsageError: If there is no such family.
    """
    choose("head", family, HEADS)
    head = HEADS[family]
    return (head.for_training if is_training else head.from_config)(in_features, num_classes, options)
