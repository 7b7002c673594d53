"""What a trained Tversky head has learned: its prototypes, what they share with images, and what lies idle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_train.heads.precision import full_precision
from tnn_train.heads.tversky.idle import Duplicate, IdleFeatures, duplicate_features, duplicates, idle_features
from tnn_train.heads.tversky.parts import PartSize, feature_parts, measure_parts
from tnn_train.heads.tversky.projection import TverskyProjection

__all__ = ["HeadAnalysis", "Prototype", "SharedFeature", "analyse_head"]

SAME = 0.99
"""Vectors with a cosine of at least this count as duplicates."""

_BATCH = 512


@dataclass(frozen=True)
class SharedFeature:
    """A feature that a prototype shares with its nearest images.

    Args:
        index: Its position among the features: the rows of the feature bank, then their opposites if it has any; or
            the dimension of the embedding for a diagonal bank.
        common: Its term of f(A and B), the mean over the nearest images.
        images: How many of the nearest images have it.
    """

    index: int
    common: float
    images: int


@dataclass(frozen=True)
class Prototype:
    """A prototype, seen through a sample of images.

    Args:
        index: Its row in ``head.prototypes``.
        label: The class it speaks for: its own with one prototype a class, else the one with the largest weight in
            ``head.linear``.
        nearest: The most similar images, best first, as positions in the sample, int64 ``[n]``.
        similarities: Their similarities, float32 ``[n]``.
        features: What it shares with them, the largest term first.
        present: How many features it has.
        best_for: To how many images of the sample no other prototype is more similar.
        of_its_class: How many of these are of the class it speaks for.
        centrality: The mean of ``cos(b, a_n)`` over the images n of the class it speaks for, minus the mean over the
            others, -2 to 2; ``a_n`` and ``b`` are the feature values of image and prototype, ``[F]``. NaN if the
            sample has no image of the class, or none of another one.
    """

    index: int
    label: int
    nearest: NDArray[np.int64]
    similarities: NDArray[np.float32]
    features: tuple[SharedFeature, ...]
    present: int
    best_for: int
    of_its_class: int
    centrality: float


@dataclass(frozen=True)
class HeadAnalysis:
    """What `analyse_head` found. A feature is present where its value is above 0: where membership is above one half.

    Args:
        num_images: Size of the sample.
        num_features: F, opposites included.
        threshold: The cosine from which on two are duplicates.
        parts: How large the parts of the logits are, and which share of them differs between the classes, by name:
            ``common``, ``input_only`` and ``prototype_only``. Those that the form does not use are left out.
        prototypes: All prototypes, in their order.
        dead_prototypes: Those that are the best for no image.
        duplicate_prototypes: Pairs of them, the most alike first.
        duplicate_features: Pairs of them, the most alike first; none for a diagonal bank.
        idle: Features that tell nothing apart by their presence.
    """

    num_images: int
    num_features: int
    threshold: float
    parts: Mapping[str, PartSize]
    prototypes: tuple[Prototype, ...]
    dead_prototypes: tuple[int, ...]
    duplicate_prototypes: tuple[Duplicate, ...]
    duplicate_features: tuple[Duplicate, ...]
    idle: IdleFeatures

    @property
    def centrality(self) -> float:
        """The mean centrality of the prototypes that have one; NaN if none has."""
        known = [prototype.centrality for prototype in self.prototypes if not np.isnan(prototype.centrality)]
        return float(np.mean(known)) if known else float("nan")


@torch.no_grad()
def analyse_head(
    head: TverskyProjection,
    embeddings: ArrayLike | Tensor,
    labels: NDArray[np.int64],
    *,
    nearest: int = 8,
    shared: int = 5,
    threshold: float = SAME,
) -> HeadAnalysis:
    """Look at a trained head through a sample of images.

    It holds the feature values ``[N, F]`` and the similarities ``[N, P]`` at once, and no more.

    Args:
        head: The trained head.
        embeddings: Of the sample, ``[N, D]``; see `tnn_train.data.images.even_sample`.
        labels: Their classes, int64 ``[N]``.
        nearest: Images to name for each prototype.
        shared: Features to name for each prototype.
        threshold: The cosine from which on two prototypes or features are duplicates.

    Raises:
        UsageError: If there are no embeddings, or they do not fit the head or the labels.
    """
    x = torch.as_tensor(embeddings).to(head.prototypes.device)
    if x.ndim != 2 or not len(x) or len(x) != len(labels):
        raise UsageError(f"got embeddings {list(x.shape)} and {len(labels)} labels; expected [N, D] and N, from 1 on")
    with full_precision(x):
        a, b = head.project(x), head.prototype_values
        collected: list[Tensor] = []
        parts = measure_parts(head, _evidence(head, x, collected))
        similarities = torch.cat(collected)
        values, places = similarities.topk(min(nearest, len(a)), dim=0)
        best = similarities.argmax(1).cpu().numpy()
        speaks_for = np.arange(len(b)) if head.linear is None else head.linear.weight.argmax(0).cpu().numpy()
        centralities = _centralities(a, b, labels[:, None] == speaks_for)
        prototypes = tuple(
            Prototype(
                index,
                label,
                places[:, index].cpu().numpy(),
                values[:, index].float().cpu().numpy(),
                _shared(head, a[places[:, index]], b[index], shared),
                int((b[index] > 0).sum()),
                int((best == index).sum()),
                int((labels[best == index] == label).sum()),
                float(centralities[index]),
            )
            for index, label in enumerate(speaks_for.tolist())
        )
        length = 1.0 if head.config.normalize else float(x.double().square().sum(1).mean().sqrt())
    return HeadAnalysis(
        len(a),
        a.shape[1],
        threshold,
        parts,
        prototypes,
        tuple(prototype.index for prototype in prototypes if not prototype.best_for),
        duplicates(head.features(b).salience, threshold),
        duplicate_features(head, length, threshold),
        idle_features(head, a, b),
    )


def _evidence(head: TverskyProjection, x: Tensor, similarities: list[Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield the evidence of some images at a time, and keep their similarities."""
    for batch in torch.split(x, _BATCH):
        evidence = head.evidence(batch)
        similarities.append(evidence["similarities"])
        yield evidence


def _centralities(a: Tensor, b: Tensor, own: NDArray[np.bool_]) -> Tensor:
    """Return the centrality of each prototype, float64 ``[P]``, of feature values ``a [N, F]`` and ``b [P, F]``.

    Args:
        a: Of the images.
        b: Of the prototypes.
        own: Which images are of the class that a prototype speaks for, ``[N, P]``.
    """
    cosines = (functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).mT).double()
    is_own = torch.from_numpy(own).to(a.device)
    inside, outside = (torch.where(mask, cosines, 0).sum(0) / mask.sum(0) for mask in (is_own, ~is_own))
    return inside - outside


def _shared(head: TverskyProjection, a: Tensor, b: Tensor, count: int) -> tuple[SharedFeature, ...]:
    """Return the features with the largest terms between images ``a [n, F]`` and a prototype ``b [F]``."""
    owners = ((a > 0) & (b > 0)).sum(0)
    common = feature_parts(head, a, b.unsqueeze(0)).common.squeeze(-1).mean(1)
    order = common.argsort(descending=True)
    shared = order[owners[order] > 0][:count]
    return tuple(SharedFeature(k, float(common[k]), int(owners[k])) for k in shared.tolist())
