"""Prototypes that are patches of training images, after ProtoPNet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_train.heads.parts.config import PartsConfig
from tnn_train.heads.parts.places import EachPlace, smallest

__all__ = ["PatchDetector", "Projection"]

_OWN, _OTHER = 1.0, -0.5


class Projection(NamedTuple):
    """What a projection of the prototypes did.

    Args:
        sources: The training image, the row and the column of each prototype, int64 ``[P, 3]``.
        moved: How far each prototype moved, as a root mean square over its channels, ``[P]``.
    """

    sources: Tensor
    moved: Tensor


class PatchDetector(nn.Module):
    """How like each prototype each place of a map is, after Chen et al. (2019, arXiv 1806.10574).

    Of the map, through two 1x1 convolutions, ``z [N, K, h, w]``, and a prototype ``w [K]`` of a class,
    ``d = mean((z - w)²)`` over the channels, and the similarity is ``log((d + 1) / (d + epsilon))`` or ``-d``. The
    paper has the sum in place of the mean. With the mean, epsilon means the same for prototypes of any size, and is far
    above the rounding errors of float32.

    Args:
        in_features: D, the size of the map at each place.
        num_classes: C.
        config: With its ``depth`` resolved.

    Attributes:
        prototypes: ``[P, K]``.
        owners: The class of each prototype, int64 ``[P]``.
    """

    owners: Tensor

    def __init__(self, in_features: int, num_classes: int, config: PartsConfig) -> None:
        super().__init__()
        self.config = config
        depth = (config.depth or in_features) if config.add_on else in_features
        owners = config.owners or [label for label in range(num_classes) for _ in range(config.per_class)]
        self.register_buffer("owners", torch.tensor(owners), persistent=False)
        self.add_on = nn.Sequential(
            *([EachPlace(in_features, depth), nn.ReLU(), EachPlace(depth, depth), nn.Sigmoid()] * config.add_on)
        )
        self.prototypes = nn.Parameter(torch.rand(len(owners), depth))

    def encode(self, x: Tensor) -> Tensor:
        """Return maps ``[N, K, h, w]`` in the space of the prototypes."""
        encoded: Tensor = self.add_on(x)
        return encoded

    def distances(self, x: Tensor) -> Tensor:
        """Return the mean squared difference of each place from each prototype, ``[N, P, h, w]``."""
        return self.apart(self.encode(x), self.prototypes)

    @staticmethod
    def apart(encoded: Tensor, prototypes: Tensor) -> Tensor:
        """Return ``mean(z²) - 2 mean(z w) + mean(w²)``, at least 0, with z and w less the mean prototype.

        Args:
            encoded: ``[N, K, h, w]``.
            prototypes: ``[P, K]``.
        """
        prototypes = prototypes.to(encoded.dtype)
        centre = prototypes.mean(0)
        z, w = (encoded - centre[:, None, None]).flatten(2), prototypes - centre
        size = prototypes.shape[1]
        apart = z.square().mean(1, keepdim=True) - (2 / size) * (w @ z) + w.square().mean(1)[:, None]
        return apart.clamp_min(0).reshape(*apart.shape[:2], *encoded.shape[2:])

    def similarity(self, distances: Tensor) -> Tensor:
        """Return the similarities of distances."""
        if self.config.similarity == "linear":
            return -distances
        epsilon = self.config.epsilon
        return torch.log1p((1 - epsilon) / (distances + epsilon))

    def maps(self, x: Tensor) -> Tensor:
        """Return how similar each place is to each prototype, ``[N, P, h, w]``."""
        return self.similarity(self.distances(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return how similar the most similar place is to each prototype, ``[N, P]``."""
        return self.similarity(smallest(self.distances(x)))

    def first_weight(self, num_classes: int) -> Tensor:
        """Return the last layer at its start, ``[C, P]``: 1 for prototypes of the class, -0.5 for others."""
        return torch.where(self.own(num_classes), _OWN, _OTHER)

    def own(self, num_classes: int) -> Tensor:
        """Return which prototypes are of which class, bool ``[C, P]``."""
        return torch.arange(num_classes, device=self.owners.device)[:, None] == self.owners

    def terms(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return the cluster and separation terms of each image, weighted, ``[n]``.

        Args:
            x: Maps ``[n, D, h, w]``.
            shares: The shares of the classes in each image, ``[n, C]``.
        """
        nearest = smallest(self.distances(x))
        owners = self.owners.expand(len(x), -1)
        of_class = nearest.new_full(shares.shape, torch.inf).scatter_reduce(1, owners, nearest, "amin")
        two, places = of_class.topk(2, dim=1, largest=False)
        is_nearest = torch.arange(shares.shape[1], device=x.device) == places[:, :1]
        others = torch.where(is_nearest, two[:, 1:], two[:, :1])
        return (shares * (self.config.cluster * of_class - self.config.separation * others)).sum(1)
