"""Where the embeddings of the training images lie, and how near to them that of another image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import logsumexp

__all__ = ["Density"]

Floats = NDArray[np.float32]

_SHORTEST = 1e-6
"""Embeddings shorter than this are divided by it, not by their length."""


@dataclass(frozen=True, eq=False)
class Density:
    """Prototypes of the classes, and a mixture of von Mises-Fisher distributions, both in the space of the embeddings.

    The mixture is on the sphere of normalised embeddings ``z``: its density is
    ``sum of weight_k exp(concentration <direction_k, z>)``, where the weights have the normaliser of the distribution
    in them (Banerjee et al. 2005, JMLR 6). That classes are mixtures of several prototypes on the sphere, and that
    strange images are far from all of them, is from Lu et al. 2024, "Learning with Mixture of Prototypes for
    Out-of-Distribution Detection" (arXiv 2402.02653).

    Args:
        prototypes: float32 ``[P, D]``.
        owners: The class of each, int64 ``[P]``.
        directions: Of length 1, float32 ``[K, D]``.
        log_weights: float32 ``[K]``.
        concentration: One for all of them, float32 ``[]``.
    """

    prototypes: Floats
    owners: NDArray[np.int64]
    directions: Floats
    log_weights: Floats
    concentration: Floats

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]], size: int, classes: int) -> Self:
        """Return the density that arrays make up.

        Args:
            arrays: By the `names`.
            size: D, the size of an embedding, or of a map at each place.
            classes: How many there are.

        Raises:
            ValueError: If they do not belong together.
        """
        owners = arrays["owners"].astype(np.int64)
        floats = {name: np.asarray(arrays[name], np.float32) for name in cls.names() if name != "owners"}
        found = cls(owners=owners, **floats)
        shapes = {
            "prototypes": (len(owners), size),
            "owners": (len(owners),),
            "directions": (len(found.log_weights.ravel()), size),
            "log_weights": (found.log_weights.size,),
            "concentration": (),
        }
        for name, shape in shapes.items():
            values = getattr(found, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} has the shape {list(values.shape)}, expected finite numbers {list(shape)}")
        if not owners.size or not found.log_weights.size or owners.min() < 0 or owners.max() >= classes:
            raise ValueError(f"its prototypes are not of classes 0 to {classes - 1}")
        return found

    def distances(self, embeddings: Floats) -> NDArray[np.float64]:
        """Return the distance of embeddings ``[N, D]`` or maps ``[N, D, h, w]`` to each prototype, ``[N, P]``.

        Of a map it is that of its mean over all places.
        """
        x, prototypes = _vectors(embeddings), self.prototypes.astype(np.float64)
        squares = (x**2).sum(1)[:, None] - 2 * x @ prototypes.T + (prototypes**2).sum(1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))

    def class_distances(self, embeddings: Floats) -> NDArray[np.float64]:
        """Return the distance to the nearest prototype of each class that has one, ``[N, classes with prototypes]``."""
        found = self.distances(embeddings)
        nearest = [found[:, self.owners == owner].min(1) for owner in np.unique(self.owners)]
        return np.asarray(np.stack(nearest, axis=1))

    def log_likelihood(self, embeddings: Floats) -> NDArray[np.float64]:
        """Return the logarithm of the density of the mixture at embeddings, or at the means of maps, ``[N]``."""
        x = _vectors(embeddings)
        z = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
        exponents = float(self.concentration) * (z @ self.directions.astype(np.float64).T)
        return np.asarray(logsumexp(exponents + self.log_weights), np.float64)


def _vectors(embeddings: Floats) -> NDArray[np.float64]:
    wide = embeddings.astype(np.float64)
    return np.asarray(wide if wide.ndim == 2 else wide.mean((2, 3)))
