"""The Tversky measures of arXiv 2506.11035, section 2, written term by term in float64: slow, and obviously right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads.tversky.layer import TverskyMeasure

Array = NDArray[np.float64]


class Measured(NamedTuple):
    """f(A and B), f(A-B) and f(B-A), each ``[N, P]``."""

    common: Array
    input_only: Array
    prototype_only: Array


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def measures(a: Array, b: Array, config: TverskyConfig, weight: Array | float = 1.0) -> Measured:
    """Measure feature values ``a [N, F]`` and ``b [P, F]``, weighted by ``weight [F]``."""
    a, b = a[:, None, :], b[None, :, :]
    if config.membership == "hard":
        m, n = np.where(a > 0, 1.0, 0.0), np.where(b > 0, 1.0, 0.0)
    else:
        m, n = sigmoid(config.sharpness * a), sigmoid(config.sharpness * b)
    a, b = np.maximum(a, 0) * m, np.maximum(b, 0) * n
    shift = np.log(2) if config.model == "ratio" else 0.0
    common = {
        "product": a * b,
        "mean": (a * n + b * m) / 2,
        "gmean": np.sqrt(a * b),
        "min": np.minimum(a, b),
        "max": a * n + b * m - np.minimum(a, b) if config.membership == "sigmoid" else np.maximum(a, b) * m * n,
        "softmin": (shift - np.logaddexp(-a, -b)) * m * n,
    }[config.intersection]
    if config.difference == "subtractmatch":
        input_only, prototype_only = np.maximum(a - b, 0), np.maximum(b - a, 0)
    elif config.difference == "ignorematch":
        input_only, prototype_only = a * (1 - n), b * (1 - m)
    elif config.membership == "hard":
        input_only, prototype_only = np.maximum(a - b, 0) * m * n, np.maximum(b - a, 0) * m * n
    else:
        input_only, prototype_only = a * n - np.minimum(a * m, b * n), b * m - np.minimum(a * m, b * n)
    return Measured(*((weight * part).sum(-1) for part in (common, input_only, prototype_only)))


def feature_values(layer: TverskyMeasure, x: Array) -> Array:
    """Return the feature values ``[N, F]`` of vectors ``x [N, D]``."""
    if layer.config.normalize:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    values = np.abs(x) if layer.feature_bank is None else x @ as_array(layer.feature_bank).T
    if layer.config.thresholds:
        values = values - as_array(layer.thresholds)
    if layer.config.opposites:
        values = np.concatenate([values, -layer.config.opposites * values], axis=1)
    return values


def prototype_values(head: TverskyHead) -> Array:
    """Return the feature values ``[P, F]`` of the prototypes of a head."""
    prototypes = as_array(head.prototypes)
    return prototypes if head.config.prototype_space == "feature" else feature_values(head, prototypes)


def similarities(layer: TverskyMeasure, x: Array, y: Array) -> tuple[Array, Array]:
    """Return the similarities ``[N, P]`` of ``x [N, D]`` and ``y [P, D]``, and their largest terms."""
    return compared(layer, feature_values(layer, x), feature_values(layer, y))


def similarities_to_prototypes(head: TverskyHead, x: Array) -> tuple[Array, Array]:
    """Return the similarities ``[N, P]`` of ``x [N, D]`` to the prototypes of a head, and their largest terms."""
    return compared(head, feature_values(head, x), prototype_values(head))


def compared(layer: TverskyMeasure, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the similarities ``[N, P]`` of feature values ``a [N, F]`` and ``b [P, F]``, and their largest terms."""
    config = layer.config
    alpha, beta, theta = (as_array(getattr(layer, name)) for name in ("alpha", "beta", "theta"))
    weight = 1.0 if layer.feature_weight is None else as_array(layer.feature_weight)
    measured = measures(a, b, config, weight)
    common, input_only, prototype_only = measured
    if config.model == "contrast":
        result = theta * common - alpha * input_only - beta * prototype_only
        return result, np.abs([theta * common, alpha * input_only, beta * prototype_only]).max(0)
    numerator = common + theta if config.smooth else common
    result = numerator / (common + alpha * input_only + beta * prototype_only + theta)
    return result, np.ones_like(result)


def logits(head: TverskyHead, x: Array) -> tuple[Array, Array]:
    """Return the logits ``[N, C]`` of a head, and the largest magnitude among their terms, for relative errors."""
    values, magnitude = similarities_to_prototypes(head, x)
    values, magnitude = values * as_array(head.logit_scale), magnitude * as_array(head.logit_scale)
    if head.linear is not None:
        weight = as_array(head.linear.weight)
        values = values @ weight.T + as_array(head.linear.bias)
        magnitude = magnitude @ np.abs(weight).T + np.abs(as_array(head.linear.bias))
    return values, magnitude


def as_array(tensor: object) -> Array:
    return np.asarray(tensor.detach().double().numpy())  # type: ignore[attr-defined]
