"""Squared distances to prototypes, and the logits that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.lvq.config import MATRIX, MIXTURE, VECTOR, LvqConfig
from tnn_train.heads.lvq.network import Network
from tnn_train.heads.lvq.places import places_of
from tnn_train.heads.precision import full_precision, precise

__all__ = ["LvqLayer"]

_MOST = 30.0
"""The largest size of the logarithm of the temperature: steps that are far too long would lead to infinity."""


class LvqLayer(nn.Module):
    """The class of the nearest prototype.

    ``d_p = |Omega (x - w_p)|^2`` is the squared distance of an embedding ``x`` to the prototype ``w_p``. Omega is the
    identity in GLVQ (Sato and Yamada 1996, NIPS 8), diagonal in GRLVQ (Hammer and Villmann 2002, Neural Networks 15),
    and any matrix in GMLVQ (Schneider, Biehl and Hammer 2009, Neural Computation 21). In LVQMLN (Saralajew et al. 2018,
    arXiv 1812.01214) ``x`` is what a network makes of the embedding: the latent values.

    ``|Omega (x - s)|^2``, with s the mean of the prototypes, is the same for all classes. What is left is linear in x:
    ``l_p = (|Omega (x - s)|^2 - d_p) / T = (2 (x - s)' Lambda (w_p - s) - |Omega (w_p - s)|^2) / T``, where Lambda is
    ``Omega' Omega`` and T a learned temperature. The logit of a class is the largest ``l_p`` of its prototypes, that of
    the nearest, or the log-sum-exp of them, as in robust soft LVQ (Seo and Obermayer 2003, Neural Computation 15).

    Args:
        in_features: D, the size of the embedding.
        num_classes: C, the number of logits.
        config: The form of the head.
    """

    owners: Tensor
    places: Tensor
    log_copies: Tensor
    kept: Tensor
    own_centre: Tensor
    log_temperature: Tensor

    def __init__(self, in_features: int, num_classes: int, config: LvqConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LvqConfig()
        self.in_features, self.num_classes = in_features, num_classes
        self.size = config.latent or in_features
        self.network: Network | None = None
        if config.latent is not None:
            sizes = (in_features, *config.hidden, config.latent)
            self.network = Network(sizes, config.activation, activate_last=config.activate_latent)
        owners = config.owners or tuple(label for label in range(num_classes) for _ in range(config.prototypes))
        places = places_of(owners, num_classes)
        self.prototypes = nn.Parameter(torch.randn(len(owners), self.size))
        self.omega: nn.Parameter | None = None
        if config.relevances == VECTOR:
            self.omega = nn.Parameter(torch.ones(self.size))
        elif config.relevances == MATRIX:
            self.omega = nn.Parameter(nn.init.orthogonal_(torch.empty(config.rank or self.size, self.size)))
        self.register_buffer("log_temperature", torch.zeros(()))
        kept = torch.ones(self.size, dtype=torch.bool)
        kept[list(config.dropped)] = False
        self.register_buffer("owners", torch.tensor(owners), persistent=False)
        self.register_buffer("places", places.prototypes, persistent=False)
        self.register_buffer("log_copies", places.log_copies, persistent=False)
        self.register_buffer("kept", kept, persistent=False)
        if config.has_centre:
            self.register_buffer("own_centre", torch.zeros(self.size))

    @property
    def num_prototypes(self) -> int:
        """P."""
        return len(self.prototypes)

    @property
    def centre(self) -> Tensor:
        """What logits are relative to, ``[L]``: the mean of the prototypes, or what was it before an edit."""
        return precise(self.own_centre if self.config.has_centre else self.prototypes.mean(0))

    @property
    def temperature(self) -> Tensor:
        """What distances are divided by for logits, float64."""
        return self.log_temperature.double().clamp(-_MOST, _MOST).exp()

    def latent(self, x: Tensor) -> Tensor:
        """Return the vectors ``[N, L]`` among the prototypes: embeddings, or what the network makes of them."""
        return x.to(precise(self.prototypes).dtype) if self.network is None else self.network(x)

    def projected(self, vectors: Tensor) -> Tensor:
        """Return ``Omega`` times vectors ``[n, L]``: the Euclidean distances between these are those that decide."""
        if self.omega is None:
            return vectors
        omega = precise(self.omega)
        return vectors * omega if omega.ndim == 1 else functional.linear(vectors, omega)

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``[N, R]`` and prototypes ``[P, R]`` in the space of the distances, from the centre."""
        apart = (self.latent(x) - self.centre) * self.kept
        return self.projected(apart), self.projected(precise(self.prototypes) - self.centre)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``."""
        with full_precision(x):
            images, prototypes = self.compared(x)
            lead = 2 * images @ prototypes.mT - prototypes.square().sum(1)
            by_class = (lead / self.temperature)[:, self.places]
            if self.config.pooling == MIXTURE:
                return (by_class - self.log_copies).logsumexp(2)
            return by_class.amax(2)

    def distances(self, x: Tensor) -> Tensor:
        """Return the squared distances ``[N, P]`` of embeddings ``x [N, D]`` to the prototypes."""
        with full_precision(x):
            images, prototypes = self.compared(x)
            squares = images.square().sum(1, keepdim=True) + prototypes.square().sum(1)
            return (squares - 2 * images @ prototypes.mT).clamp_min(0)
