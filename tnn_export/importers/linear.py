"""A linear classifier as a Tversky one: see `tnn_train.model.unfolding`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.errors import UsageError
from tnn_train.heads import LinearHead
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.classifiers import read_classifier
from tnn_train.model.unfolding import unfold_checkpoint

__all__ = ["LINEAR", "LINEAR_OPTIONS", "import_linear"]

LINEAR = "linear"
"""The source of state dicts whose last layer is linear."""

LINEAR_OPTIONS: Mapping[str, Any] = {"code": "hierarchy"}
"""Its options, with their defaults."""


def import_linear(
    path: str | Path, *, logit_scale: float = 1.0, options: Mapping[str, Any] | None = None, **classifier: Any
) -> Checkpoint:
    """Turn a linear classifier into a checkpoint with the Tversky head of the same predictions.

    Args:
        path: The state dict.
        logit_scale: What the layer's outputs were multiplied by.
        options: ``code``, as for `tnn_train.model.unfolding.unfold_checkpoint`.
        classifier: As for `tnn_train.model.classifiers.read_classifier`.

    Raises:
        UsageError: As these two, or if there is no such option.
        ArtifactError: As `read_classifier`.
        UnfoldingError: As `unfold_checkpoint`.
    """
    given = dict(options or {})
    for option in given:
        if option not in LINEAR_OPTIONS:
            raise UsageError(
                f"{LINEAR} has no option {option!r}{nearest(option, LINEAR_OPTIONS)}; it has "
                f"{', '.join(LINEAR_OPTIONS)}"
            )
    checkpoint = read_classifier(path, **classifier)
    head = checkpoint.model.head
    assert isinstance(head, LinearHead)
    with torch.no_grad():
        for value in (head.weight, head.bias):
            value.mul_(logit_scale)
    return unfold_checkpoint(checkpoint, {**LINEAR_OPTIONS, **given}["code"], source=str(path))
