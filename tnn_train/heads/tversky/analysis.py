"""What a trained Tversky head has learned: its prototypes, what they share with images, and what lies idle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from tnn_runtime.errors import UsageError
from tnn_train.heads.precision import full_precision
from tnn_train.heads.tversky import similarity
from tnn_train.heads.tversky.layer import TverskyMeasure
from tnn_train.heads.tversky.projection import TverskyProjection
from tnn_train.heads.tversky.similarity import Pairs, Parts

__all__ = ["Duplicate", "HeadAnalysis", "Prototype", "SharedFeature", "analyse_head", "feature_parts"]

SAME = 0.99
"""Vectors with a cosine of at least this count as duplicates."""

_BATCH = 512


@dataclass(frozen=True)
class SharedFeature:
    """A feature that a prototype shares with its nearest images.

    Args:
        index: Row of the feature bank, or dimension of the embedding for a diagonal bank.
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
    """

    index: int
    label: int
    nearest: NDArray[np.int64]
    similarities: NDArray[np.float32]
    features: tuple[SharedFeature, ...]
    present: int
    best_for: int
    of_its_class: int


@dataclass(frozen=True)
class Duplicate:
    """Two prototypes, or two features, that nearly coincide.

    Args:
        first: Index of one.
        second: Index of the other, a larger one.
        cosine: Of the prototypes' saliences, or of the rows of the bank.
    """

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class HeadAnalysis:
    """What `analyse_head` found. A feature is present where its value is above 0: where membership is above one half.

    Args:
        num_images: Size of the sample.
        num_features: F.
        threshold: The cosine from which on two are duplicates.
        prototypes: All prototypes, in their order.
        dead_prototypes: Those that are the best for no image.
        duplicate_prototypes: Pairs of them, the most alike first.
        duplicate_features: Pairs of them, the most alike first; none for a diagonal bank.
        features_in_no_image: Features that no image of the sample has.
        features_in_no_prototype: Features that no prototype has.
        features_everywhere: Features that every image and every prototype has.
    """

    num_images: int
    num_features: int
    threshold: float
    prototypes: tuple[Prototype, ...]
    dead_prototypes: tuple[int, ...]
    duplicate_prototypes: tuple[Duplicate, ...]
    duplicate_features: tuple[Duplicate, ...]
    features_in_no_image: tuple[int, ...]
    features_in_no_prototype: tuple[int, ...]
    features_everywhere: tuple[int, ...]


def feature_parts(measure: TverskyMeasure, a: Tensor, b: Tensor) -> Parts:
    """Return the terms of each feature, ``[F, N, P]``, of feature values ``a [N, F]`` and ``b [P, F]``.

    Each feature is measured as if it were the only one, so their sums over F are ``measure.parts(a, b)``.
    """
    weight = measure.feature_weight
    pairs = Pairs(
        measure.features(a.mT.unsqueeze(-1)),
        measure.features(b.mT.unsqueeze(-1)),
        None if weight is None else weight.view(-1, 1, 1),
    )
    config = measure.config
    return similarity.measure(pairs, config.model, config.intersection, config.difference)


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
    """Look at a trained head through a sample of training images.

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
        similarities = torch.cat([head.compare(part, b) for part in torch.split(a, _BATCH)])
        values, places = similarities.topk(min(nearest, len(a)), dim=0)
        best = similarities.argmax(1).cpu().numpy()
        speaks_for = range(len(b)) if head.linear is None else head.linear.weight.argmax(0).tolist()
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
            )
            for index, label in enumerate(speaks_for)
        )
    in_images, in_prototypes = a > 0, b > 0
    return HeadAnalysis(
        len(a),
        a.shape[1],
        threshold,
        prototypes,
        tuple(prototype.index for prototype in prototypes if not prototype.best_for),
        _duplicates(head.features(b).salience, threshold),
        () if head.feature_bank is None else _duplicates(head.feature_bank, threshold),
        _where(~in_images.any(0)),
        _where(~in_prototypes.any(0)),
        _where(in_images.all(0) & in_prototypes.all(0)),
    )


def _shared(head: TverskyProjection, a: Tensor, b: Tensor, count: int) -> tuple[SharedFeature, ...]:
    """Return the features with the largest terms between images ``a [n, F]`` and a prototype ``b [F]``."""
    both = (a > 0) & (b > 0)
    common = feature_parts(head, a, b.unsqueeze(0)).common.squeeze(-1).mean(1)
    order = common.argsort(descending=True).tolist()
    return tuple(SharedFeature(k, float(common[k]), int(both[:, k].sum())) for k in order if both[:, k].any())[:count]


def _duplicates(rows: Tensor, threshold: float) -> tuple[Duplicate, ...]:
    cosines = cosine_similarity(rows.detach().double().cpu().numpy())
    pairs = np.argwhere(np.triu(cosines >= threshold, 1)).tolist()
    found = [Duplicate(first, second, float(cosines[first, second])) for first, second in pairs]
    return tuple(sorted(found, key=lambda pair: -pair.cosine))


def _where(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
