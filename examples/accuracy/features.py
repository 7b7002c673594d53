"""What the features of trained heads are: alive, telling classes apart, and the same from seed to seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from two_layers import TwoLayers

from tnn_train import TverskyHead, load_checkpoint
from tnn_train.data import ImageSet
from tnn_train.heads import Head
from tnn_train.heads.tversky.analysis import analyse_head
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.run_files import BEST
from tnn_train.training.embeddings import embed

__all__ = ["FeatureFacts", "feature_facts"]


@dataclass(frozen=True)
class FeatureFacts:
    """What is known of the features of one head, means over the seeds.

    Args:
        count: How many there are, opposites included.
        dead: How many of them no image has: their values are 0 or below.
        shares: Of each part of a Tversky logit, the share of its mean square that differs between the classes.
        centrality: How much nearer, by cosine, a prototype is to images of its class than to others; ``None`` for a
            head without prototypes.
        agreement: The mean absolute correlation of features of two seeds, each feature of one paired with one of the
            other so that the sum is as large as possible; the mean over all pairs of seeds. ``None`` for one seed.
        common_groups: The share of the attributes of several classes that two seeds have in common, out of those that
            either has; the mean over all pairs of seeds. ``None`` without such attributes, or for one seed.
    """

    count: int
    dead: float
    shares: Mapping[str, float]
    centrality: float | None
    agreement: float | None
    common_groups: float | None


@torch.no_grad()
def feature_facts(folders: Sequence[Path], images: ImageSet, cache: Path) -> FeatureFacts | None:
    """Look at a head that was trained from several seeds; ``None`` for one without features.

    Args:
        folders: The run folders.
        images: The images to look through.
        cache: Folder for embeddings.
    """
    checkpoints = [load_checkpoint(folder / BEST) for folder in folders]
    heads = [checkpoint.model.head for checkpoint in checkpoints]
    if not isinstance(heads[0], TverskyHead | TwoLayers):
        return None
    embeddings = [_embed(checkpoint, images, cache) for checkpoint in checkpoints]
    values = [_values(head, x) for head, x in zip(heads, embeddings, strict=True)]
    tversky = [head for head in heads if isinstance(head, TverskyHead)]
    analyses = [analyse_head(head, x, images.labels) for head, x in zip(tversky, embeddings, strict=False)]
    groups = [{one.classes for one in head.config.attributes if len(one.classes) > 1} for head in tversky]
    present = [head.project(x) for head, x in zip(tversky, embeddings, strict=False)] or values
    return FeatureFacts(
        count=present[0].shape[1],
        dead=float(np.mean([int((~(value > 0).any(0)).sum()) for value in present])),
        shares={
            name: float(np.mean([found.parts[name].share for found in analyses]))
            for name in (analyses[0].parts if analyses else ())
        },
        centrality=float(np.mean([found.centrality for found in analyses])) if analyses else None,
        agreement=_mean([_agreement(one.numpy(), other.numpy()) for one, other in combinations(values, 2)]),
        common_groups=_mean([len(one & other) / len(one | other) for one, other in combinations(groups, 2) if one]),
    )


def _embed(checkpoint: Checkpoint, images: ImageSet, cache: Path) -> Tensor:
    own = ImageSet(images.sources, images.labels, checkpoint.preprocessing)
    return embed(checkpoint.model.backbone, own, torch.device("cpu"), cache).embeddings


def _values(head: Head, x: Tensor) -> Tensor:
    """Return what the features have as values, ``[N, K]``; of a feature and its opposite, one."""
    if isinstance(head, TverskyHead):
        return head.directions(x)
    assert isinstance(head, TwoLayers)
    hidden: Tensor = head.hidden(x)
    return hidden


def _agreement(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):  # A feature that is the same for all images correlates with nothing.
        correlations = np.abs(np.nan_to_num(np.corrcoef(one.T, other.T)[: one.shape[1], one.shape[1] :]))
    return float(correlations[linear_sum_assignment(correlations, maximize=True)].mean())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
