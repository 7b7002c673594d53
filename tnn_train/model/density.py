"""Where the embeddings of training images lie: prototypes of the classes, and a mixture on the sphere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ive, logsumexp

from tnn_runtime.answers.density import Density
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.images.reading import even_sample
from tnn_train.model.exemplars import LOOKED_AT
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = ["density_with_class", "find_density", "fit_density"]

Floats: TypeAlias = NDArray[np.float64]

_BATCH = 64
_MOST_COMPONENTS = 3
_IMAGES_OF_A_COMPONENT = 20
"""A class has one component of the mixture for so many images, and at least one."""

_ROUNDS = 20
_SHORTEST = 1e-6
_HIGHEST, _LOWEST = 1e6, 1e-3
"""Bounds of the concentration: beyond them all embeddings point the same way, or nowhere."""


def find_density(
    model: ImageModel,
    preprocessing: Preprocessing,
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    labels: NDArray[np.int64],
) -> Density | None:
    """Find where the embeddings of training images lie; up to 5,000 are looked at, spread evenly.

    Where the head has prototypes among the embeddings, they take the place of the class means.

    Args:
        model: The model, in evaluation mode, on any device.
        preprocessing: Of the model.
        read: Returns the training images at some places, int64 ``[n]``, as uint8 ``[n, H, W, C]``.
        labels: The classes of all training images, int64 ``[N]``.

    Returns:
        The density; ``None`` if an embedding is no finite number.
    """
    places = even_sample(len(labels), LOOKED_AT)
    device = next(model.parameters()).device
    normalize = Normalize(preprocessing).to(device)
    rows = []
    with torch.inference_mode():
        for some in np.array_split(places, range(_BATCH, len(places), _BATCH)):
            x = model.backbone(normalize(torch.from_numpy(read(some)).to(device))).float()
            rows.append((x if x.ndim == 2 else x.mean((2, 3))).cpu())
    embeddings = torch.cat(rows)
    if not bool(embeddings.isfinite().all()):
        return None
    found = fit_density(embeddings.numpy(), labels[places])
    points = model.head.points()
    if points is None:
        return found
    prototypes, owners = (values.detach().cpu().numpy() for values in points)
    return dataclasses.replace(found, prototypes=prototypes.astype(np.float32), owners=owners)


def fit_density(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> Density:
    """Return the density of embeddings: the mean of each class, and a mixture of von Mises-Fisher distributions.

    The components of a class start at the clusters of k-means on the normalised embeddings and are fitted by
    expectation and maximisation; all components have one concentration, which follows from how long the mean vectors
    are by the approximation of Banerjee et al. 2005, "Clustering on the Unit Hypersphere using von Mises-Fisher
    Distributions" (JMLR 6, equation 4.4). Classes weigh as much as they have images.

    Args:
        embeddings: Of training images, ``[n, D]``, or maps ``[n, D, h, w]``, of which the means are taken.
        labels: Their classes, int64 ``[n]``; a class may have none.
    """
    wide = embeddings.astype(np.float64)
    x = wide if wide.ndim == 2 else wide.mean((2, 3))
    z = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label) for label in classes]
    directions = [_clusters(z[rows]) for rows in members]
    shares = [np.full(len(one), 1 / len(one)) for one in directions]
    concentration = _LOWEST
    for _ in range(_ROUNDS):
        length = 0.0
        for place, rows in enumerate(members):
            exponents = concentration * z[rows] @ directions[place].T + np.log(shares[place])
            belongs = np.exp(exponents - logsumexp(exponents, axis=1, keepdims=True))
            sums = belongs.T @ z[rows]
            lengths = np.linalg.norm(sums, axis=1)
            length += float(lengths.sum())
            there = lengths > _SHORTEST
            directions[place][there] = sums[there] / lengths[there, None]
            shares[place] = np.maximum(belongs.mean(0), np.finfo(float).tiny)
        concentration = _concentration(length / len(z), z.shape[1])
    weights = [share * len(rows) / len(z) for share, rows in zip(shares, members, strict=True)]
    return Density(
        np.stack([x[rows].mean(0) for rows in members]).astype(np.float32),
        classes,
        np.concatenate(directions).astype(np.float32),
        (np.log(np.concatenate(weights)) + _log_normaliser(concentration, z.shape[1])).astype(np.float32),
        np.asarray(concentration, np.float32),
    )


def density_with_class(density: Density, embeddings: NDArray[np.float32], place: int) -> Density:
    """Return the density with one more class, which counts as much as the others do on average.

    Args:
        density: Of the classes before.
        embeddings: Of images of the new class, ``[n, D]``.
        place: Where among the classes the new one is.
    """
    added = fit_density(embeddings, np.full(len(embeddings), place))
    classes = len(np.unique(density.owners))
    normaliser = float(logsumexp(density.log_weights))
    own = added.log_weights - float(logsumexp(added.log_weights))
    log_weights = [density.log_weights + np.log(classes / (classes + 1)), own + normaliser - np.log(classes + 1)]
    return Density(
        np.concatenate([density.prototypes, added.prototypes]),
        np.concatenate([density.owners + (density.owners >= place), added.owners]),
        np.concatenate([density.directions, added.directions]),
        np.concatenate(log_weights).astype(np.float32),
        density.concentration,
    )


def _clusters(z: Floats) -> Floats:
    """Return the directions of the clusters of the unit vectors of a class, ``[k, D]``."""
    count = max(1, min(_MOST_COMPONENTS, len(z) // _IMAGES_OF_A_COMPONENT, len(np.unique(z, axis=0))))
    if count == 1:
        centres = z.mean(0, keepdims=True)
    else:
        from sklearn.cluster import KMeans  # takes a second, and an export does not need it

        centres = KMeans(count, n_init=1, random_state=0).fit(z).cluster_centers_
    return np.asarray(centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), _SHORTEST))


def _concentration(length: float, size: int) -> float:
    """Return the concentration of vectors of length 1 whose mean has a length of 0 to 1."""
    square = min(length, 1.0) ** 2
    return float(np.clip(length * (size - square) / max(1 - square, 1 / _HIGHEST), _LOWEST, _HIGHEST))


def _log_normaliser(concentration: float, size: int) -> float:
    """Return the logarithm of ``k^(D/2-1) / ((2 pi)^(D/2) I_(D/2-1)(k))``, the normaliser of the distribution.

    Where the Bessel function is too small for a number, its leading term for large orders stands for it (Abramowitz and
    Stegun, 9.7.7).
    """
    order = size / 2 - 1
    scaled = ive(order, concentration)
    if scaled > 0:
        bessel = float(np.log(scaled)) + concentration
    else:
        root = np.hypot(order, concentration)
        bessel = float(root + order * np.log(concentration / (order + root)) - 0.5 * np.log(2 * np.pi * root))
    return order * float(np.log(concentration)) - size / 2 * float(np.log(2 * np.pi)) - bessel
