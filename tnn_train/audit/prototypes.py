"""Whether prototypes are what their name says: central among the images of their classes, apart, and each at work.

All functions take vectors ``[N, K]`` of images and ``[P, K]`` of prototypes in one space, as
`tnn_train.heads.base.PrototypeView` has them. What a class has no images for is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "activation_entropy",
    "centrality",
    "duplicate_share",
    "margin_to_nearest",
    "nearest_of_class",
    "separation",
    "typicality",
]

_SAME = 0.99
_BINS = 10

Vectors = NDArray[np.float64]
Classes = NDArray[np.int64]


def centrality(images: Vectors, labels: Classes, prototypes: Vectors, owners: Classes) -> Vectors:
    """Return the mean cosine of each prototype with the images of its class, minus that with the others, ``[P]``.

    At 0 a prototype is as near to other classes as to its own. It is the measure of the report of a training.

    Args:
        images: ``[N, K]``.
        labels: Their classes, ``[N]``.
        prototypes: ``[P, K]``.
        owners: The class that each speaks for, ``[P]``.
    """
    cosines, own = _unit(images) @ _unit(prototypes).T, labels[:, None] == owners
    return _mean(cosines, own) - _mean(cosines, ~own)


def margin_to_nearest(images: Vectors, labels: Classes, prototypes: Vectors, owners: Classes) -> Vectors:
    """Return the mean cosine with the own class, minus the largest mean cosine with another class, ``[P]``.

    Below 0 a prototype is nearer to another class than to its own. The arguments are those of `centrality`.
    """
    classes = np.unique(labels)
    cosines = _unit(images) @ _unit(prototypes).T
    by_class = np.stack([cosines[labels == one].mean(0) for one in classes])
    own = classes[:, None] == owners
    others = np.where(own, -np.inf, by_class).max(0)
    return np.where(own.any(0) & np.isfinite(others), np.where(own, by_class, 0).sum(0) - others, np.nan)


def typicality(images: Vectors, labels: Classes, prototypes: Vectors, owners: Classes) -> Vectors:
    """Return how like its class a prototype is, compared with the class's own images, ``[P]``.

    It is the mean cosine with the images of the class, divided by the mean cosine of one of them with the others. Above
    1 a prototype is more central than its members are on average: at the mean of unit vectors whose mean cosine is c,
    it is about ``1 / sqrt(c)``. The arguments are those of `centrality`.
    """
    units, directions = _unit(images), _unit(prototypes)
    found = np.full(len(prototypes), np.nan)
    for place, owner in enumerate(owners):
        members = units[labels == owner]
        if len(members) > 1:
            count, total = len(members), members.sum(0)
            among = (total @ total - (members * members).sum()) / (count * (count - 1))
            found[place] = (members @ directions[place]).mean() / among if among > 0 else np.nan
    return found


def nearest_of_class(similarities: Vectors, labels: Classes, owners: Classes, count: int = 10) -> Vectors:
    """Return which share of the images that are most like each prototype are of its class, ``[P]``.

    The purity of Nauta et al. (2023, PIP-Net, arXiv 2307.10404), with classes in place of parts.

    Args:
        similarities: Of each image to each prototype by the head's own measure, ``[N, P]``.
        labels: As for `centrality`.
        owners: As for `centrality`.
        count: How many images; as many as there are of its class, if these are fewer.
    """
    nearest = labels[np.argsort(-similarities, axis=0, kind="stable")[:count]]
    counts = [min(count, int((labels == owner).sum())) for owner in owners]
    found = zip(nearest.T, owners, counts, strict=True)
    return np.array([(some[:most] == owner).mean() if most else np.nan for some, owner, most in found])


def separation(prototypes: Vectors, owners: Classes) -> float:
    """Return the mean cosine distance of prototypes of different classes, 0 to 2; NaN for one class.

    The inter-class distance of Schlinge et al. (2025, arXiv 2507.06819).

    Args:
        prototypes: ``[P, K]``.
        owners: The class of each, ``[P]``.
    """
    units, apart = _unit(prototypes), owners[:, None] != owners
    return float((1 - units @ units.T)[apart].mean()) if apart.any() else float("nan")


def duplicate_share(vectors: Vectors, threshold: float = _SAME) -> float:
    """Return which share of vectors has another one with a cosine of at least ``threshold``.

    Args:
        vectors: ``[P, K]``: prototypes, or features as the columns of their centred values.
        threshold: The cosine.
    """
    units = _unit(vectors)
    same = units @ units.T >= threshold
    np.fill_diagonal(same, False)
    return float(same.any(1).mean())


def activation_entropy(similarities: Vectors, bins: int = _BINS) -> Vectors:
    """Return the entropy in bits of how like the images each prototype is, ``[P]``: 0 to ``log2(bins)``.

    The similarities of each prototype are counted in ``bins`` of equal width from its least to its largest. At 0 it
    tells no images apart. The activation entropy of Schlinge et al. (2025, arXiv 2507.06819) counts them from 0 to the
    largest, which similarities below 0 do not allow.

    Args:
        similarities: ``[N, P]``.
        bins: How many.
    """
    shares = np.stack([np.histogram(column, bins)[0] / len(column) for column in similarities.T])
    terms = shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.asarray(-terms.sum(1) + 0.0)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths, lengths, 1))


def _mean(values: Vectors, mask: NDArray[np.bool_]) -> Vectors:
    """Return the mean of each column where the mask is true."""
    counts = mask.sum(0)
    means = np.full(values.shape[1], np.nan)
    return np.asarray(np.divide(np.where(mask, values, 0).sum(0), counts, out=means, where=counts > 0))
