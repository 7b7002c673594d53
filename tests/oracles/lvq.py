"""Learning vector quantisation by its definition, in float64 and one prototype after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tnn_train import LvqHead

Array = NDArray[np.float64]

SELU = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717

ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.where(z > 0, z, 0.0),
    "tanh": np.tanh,
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "selu": lambda z: SELU * np.where(z > 0, z, SELU_ALPHA * (np.exp(np.minimum(z, 0)) - 1)),
}


def as_array(tensor: object) -> Array:
    return tensor.detach().double().numpy()  # type: ignore[attr-defined,no-any-return]


def latent(head: LvqHead, x: Array) -> Array:
    """Return what the network makes of embeddings ``x [N, D]``: ``[N, L]``."""
    if head.network is None:
        return x
    last = len(head.network.layers) - 1
    for place, layer in enumerate(head.network.layers):
        x = x @ as_array(layer.weight).T + as_array(layer.bias)
        if place < last or head.config.activate_latent:
            x = ACTIVATIONS[head.config.activation](x)
    return x


def lambda_of(head: LvqHead) -> Array:
    """Return ``Lambda = Omega' Omega``, ``[L, L]``."""
    if head.omega is None:
        return np.eye(head.size)
    omega = as_array(head.omega)
    return np.diag(omega**2) if omega.ndim == 1 else omega.T @ omega


def centre(head: LvqHead) -> Array:
    return as_array(head.own_centre if head.config.has_centre else head.prototypes.mean(0))


def seen(head: LvqHead, x: Array) -> Array:
    """Return the latent values of images, which have those of the centre where a feature is left out."""
    values = latent(head, x).copy()
    for feature in head.config.dropped:
        values[:, feature] = centre(head)[feature]
    return values


def distances(head: LvqHead, x: Array) -> Array:
    """Return ``(h - w)' Lambda (h - w)`` for each image and prototype, ``[N, P]``."""
    metric, found = lambda_of(head), []
    for h in seen(head, x):
        found.append([(h - w) @ metric @ (h - w) for w in as_array(head.prototypes)])
    return np.array(found)


def leads(head: LvqHead, x: Array) -> Array:
    """Return how much nearer than to the centre an image is to each prototype, ``[N, P]``, over the temperature."""
    metric, rows = lambda_of(head), []
    for h, row in zip(seen(head, x), distances(head, x), strict=True):
        apart = h - centre(head)
        rows.append((apart @ metric @ apart - row) / np.exp(as_array(head.log_temperature)))
    return np.array(rows)


def logits(head: LvqHead, x: Array) -> Array:
    """Return the logits ``[N, C]``: the largest lead of the prototypes of each class, or their log-sum-exp."""
    pool = np.max if head.config.pooling == "nearest" else np.logaddexp.reduce
    owners = head.owners.numpy()
    return np.array([[pool(row[owners == label]) for label in range(head.num_classes)] for row in leads(head, x)])


def contributions(head: LvqHead, x: Array) -> Array:
    """Return what is linear in the image in the lead of each prototype, times its share in the logit, ``[N, P]``."""
    metric, owners, found = lambda_of(head), head.owners.numpy(), []
    apart = as_array(head.prototypes) - centre(head)
    lengths = np.array([w @ metric @ w for w in apart]) / np.exp(as_array(head.log_temperature))
    for row, pooled in zip(leads(head, x), logits(head, x), strict=True):
        is_nearest = row == pooled[owners]
        shares = is_nearest if head.config.pooling == "nearest" else np.exp(row - pooled[owners])
        found.append(shares * (row + lengths))
    return np.array(found)


def confidence(head: LvqHead, x: Array) -> Array:
    """Return ``(d- - d+) / (d- + d+)``, ``[N]``."""
    found = []
    for row in distances(head, x):
        nearest = {label: min(row[head.owners.numpy() == label]) for label in range(head.num_classes)}
        best, other, *_ = sorted(nearest.values())
        found.append((other - best) / (other + best))
    return np.array(found)


def glvq_loss(head: LvqHead, x: Array, shares: Array, weight: Array) -> Array:
    """Return the loss of each image, ``[N]``, for shares of classes ``[N, C]`` that have weights ``[C]``."""
    config, losses = head.config, []
    for row, share in zip(distances(head, x), shares, strict=True):
        total = 0.0
        for label in range(head.num_classes):
            own = min(row[head.owners.numpy() == label])
            other = min(row[head.owners.numpy() != label])
            mu = (own - other) / (own + other) + config.margin
            squashed = 1 / (1 + np.exp(-config.beta * mu))
            value = {"identity": mu, "sigmoid": squashed, "swish": mu * squashed}[config.transfer]
            total += weight[label] * share[label] * value
        losses.append(total)
    return np.array(losses)
