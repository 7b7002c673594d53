"""What is audited: a trained model, some images, and why the model answers what it answers to them."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_runtime.bundle.manifest import HEAD_FILE
from tnn_runtime.errors import UsageError
from tnn_runtime.explain import EXPLAINERS, Explainer
from tnn_runtime.explain.result import Contrast, Explanation
from tnn_train.heads.base import PrototypeView
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.config import options_field
from tnn_train.model.image_model import embed

__all__ = ["Explained", "Subject", "explainer_of"]

_ALL = 1 << 31


class Explained(NamedTuple):
    """The two best classes of an image, explained with all features.

    Args:
        best: The class with the largest logit; its contrast is with the other one.
        other: The runner-up.
    """

    best: Explanation
    other: Explanation

    @property
    def contrast(self) -> Contrast:
        """What sets the best class apart from the runner-up."""
        assert self.best.contrast is not None
        return self.best.contrast

    def margin(self, without: list[int]) -> float:
        """Return how far the logit of the best class lies above that of the runner-up without some features."""
        return self.best.without(without) - self.other.without(without)


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model and the images that it is audited on.

    Args:
        checkpoint: The model.
        images: As decoded for it, uint8 ``[n, H, W, C]``.
        labels: Their classes, int64 ``[n]``.

    Raises:
        UsageError: If the head has no explanations.
    """

    checkpoint: Checkpoint
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @cached_property
    def embeddings(self) -> Tensor:
        """What the head takes of the images, float32 ``[n, ...]``."""
        return self.embed(self.images)

    @cached_property
    def explained(self) -> list[Explained]:
        """The explanations of the images."""
        return self.explain(self.embeddings)

    @cached_property
    def explainer(self) -> Explainer:
        """What explains the head."""
        return explainer_of(self.checkpoint, self.embeddings.shape[1])

    @cached_property
    def prototypes(self) -> PrototypeView | None:
        """The prototypes beside the images; ``None`` if the head has none."""
        with torch.no_grad():
            return self.checkpoint.model.head.prototype_view(self.embeddings)

    def embed(self, images: NDArray[np.uint8]) -> Tensor:
        """Return what the head takes of images, uint8 ``[n, H, W, C]``."""
        return embed(self.checkpoint.model.backbone, self.checkpoint.preprocessing, images)

    @torch.no_grad()
    def explain(self, embeddings: Tensor, num_features: int = _ALL) -> list[Explained]:
        """Explain the two best classes of images against each other.

        Args:
            embeddings: What the head takes of them, ``[n, ...]``.
            num_features: How many features to list for each class, at most.
        """
        logits = self.checkpoint.model.head(embeddings).numpy()
        return [Explained(*pair) for pair in self.explainer(embeddings.numpy(), logits, 2, num_features, 0)]


def explainer_of(checkpoint: Checkpoint, size: int) -> Explainer:
    """Return what explains the head of a checkpoint: what the bundle that is exported from it is explained with.

    Args:
        checkpoint: The model.
        size: D, the size of an embedding, or the channels of a map.

    Raises:
        UsageError: If the head has no explanations.
    """
    family = checkpoint.config.head
    with torch.no_grad():
        arrays = {name: tensor.cpu().numpy() for name, tensor in checkpoint.model.head.arrays().items()}
    if family not in EXPLAINERS or not arrays:
        raise UsageError(
            f"heads of the family {family} have no explanations to audit; expected one of the families "
            + ", ".join(EXPLAINERS)
        )
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    options = dataclasses.asdict(checkpoint.config).get(options_field(family))
    # In a manifest they are JSON.
    options = json.loads(json.dumps(options))
    return EXPLAINERS[family](Path(HEAD_FILE), options, checkpoint.class_names, size, file.getvalue())
