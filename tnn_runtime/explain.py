"""How a Tversky logit came about: its common, input-only and prototype-only parts, in plain NumPy.

The sums here are the definitions (arXiv 2506.11035, section 2), term by term, for one class at a time; the fast
forms of the same measures are in the model's graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError
from tnn_runtime.storage import read_arrays

__all__ = ["Explanation", "FeatureParts", "HeadExplainer"]

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureParts:
    """What one feature of the bank adds to the three parts of an `Explanation`."""

    index: int
    common: float
    input_only: float
    prototype_only: float


@dataclass(frozen=True)
class Explanation:
    """Why a class got its logit.

    Contrast model: ``logit = common - input_only - prototype_only + bias``.
    Ratio model: ``logit = scale * common / (common + input_only + prototype_only + offset)``.

    Where a linear map follows the prototypes, each part is a sum over the prototypes, weighted by the map. In the ratio
    model the parts of a prototype are then shares of its denominator, so that ``logit = common + bias``, and
    ``input_only`` and ``prototype_only`` are what the similarities fell short of 1 by.

    Args:
        label: Name of the class.
        index: Its position among the logits.
        logit: The logit that the parts add up to.
        common: Weighted salience of the features that the input shares with the prototype of the class.
        input_only: Weighted salience of what the input has and the prototype has not (or has less of).
        prototype_only: Weighted salience of what the prototype has and the input has not (or has less of).
        offset: theta in the ratio model, 0 in the contrast model or where a linear map follows.
        scale: The learned logit scale of the ratio model, 1 in the contrast model or where a linear map follows.
        bias: That of the linear map, 0 where there is none.
        features: The features with the largest parts, strongest first.
    """

    label: str
    index: int
    logit: float
    common: float
    input_only: float
    prototype_only: float
    offset: float
    scale: float
    bias: float
    features: tuple[FeatureParts, ...]


class _Features(NamedTuple):
    membership: _Values
    salience: _Values


def _hard(values: _Values, sharpness: float) -> _Features:
    return _Features((values > 0).astype(np.float64), np.maximum(values, 0))


def _sigmoid(values: _Values, sharpness: float) -> _Features:
    membership = np.exp(-np.logaddexp(0, -sharpness * values))
    return _Features(membership, np.maximum(values, 0) * membership)


def _product(a: _Features, b: _Features) -> _Values:
    return a.salience * b.salience


def _mean(a: _Features, b: _Features) -> _Values:
    return (a.salience * b.membership + a.membership * b.salience) / 2


def _gmean(a: _Features, b: _Features) -> _Values:
    return np.asarray(np.sqrt(a.salience * b.salience))


def _min(a: _Features, b: _Features) -> _Values:
    return np.minimum(a.salience, b.salience)


def _max(a: _Features, b: _Features) -> _Values:
    return a.salience * b.membership + a.membership * b.salience - np.minimum(a.salience, b.salience)


def _softmin(a: _Features, b: _Features) -> _Values:
    return np.asarray(-np.logaddexp(-a.salience, -b.salience) * a.membership * b.membership)


def _softmin_of_means(a: _Features, b: _Features) -> _Values:
    return _softmin(a, b) + math.log(2) * a.membership * b.membership


def _ignorematch(a: _Features, b: _Features) -> _Values:
    return a.salience * (1 - b.membership)


def _subtractmatch(a: _Features, b: _Features) -> _Values:
    return np.maximum(a.salience - b.salience, 0)


_Measure = Callable[[_Features, _Features], _Values]
_MEMBERSHIPS: dict[str, Callable[[_Values, float], _Features]] = {"hard": _hard, "sigmoid": _sigmoid}
_COMMON: dict[str, _Measure] = {
    "product": _product,
    "mean": _mean,
    "gmean": _gmean,
    "min": _min,
    "max": _max,
    "softmin": _softmin,
}
_DISTINCTIVE: dict[str, _Measure] = {"ignorematch": _ignorematch, "subtractmatch": _subtractmatch}
_SCALARS = ("alpha", "beta", "theta", "logit_scale")
_SHORTEST = 1e-6


class HeadExplainer:
    """Explains the logits of a Tversky head from embeddings.

    Args:
        path: ``head.npz`` of a bundle: ``prototype_features [P, F]`` (the prototypes in feature space, as the head
            computed them), the scalars ``alpha``, ``beta``, ``theta`` and ``logit_scale``; ``feature_bank [F, D]`` or,
            for a diagonal bank, ``feature_weight [F]``; and ``linear_weight [C, P]`` and ``linear_bias [C]`` if a
            linear map follows the prototypes.
        config: The ``tversky`` part of the model configuration in the manifest.
        num_classes: C, which the file must agree with.

    Raises:
        ArtifactError: If the file cannot be read, or the head has a form that this version cannot explain.
    """

    def __init__(self, path: Path, config: Any, num_classes: int) -> None:
        try:
            self._common = _COMMON[config["intersection"]]
            self._distinctive = _DISTINCTIVE[config["difference"]]
            self._membership = _MEMBERSHIPS[config["membership"]]
            self._sharpness = float(config["sharpness"])
            self._normalize = bool(config["normalize"])
            self._ratio = {"contrast": False, "ratio": True}[config["model"]]
            bank = {"learned": "feature_bank", "diagonal": "feature_weight"}[config["feature_bank"]]
            linear = () if config["num_prototypes"] is None else ("linear_weight", "linear_bias")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the form {config} cannot be explained by this version; upgrade tnn-deploy") from error
        if self._ratio and self._common is _softmin:
            self._common = _softmin_of_means
        arrays = read_arrays(path, "prototype_features", *_SCALARS, bank, *linear)
        values = {name: array.astype(np.float64) for name, array in arrays.items()}
        if not all(np.isfinite(array).all() for array in values.values()):
            raise ArtifactError(f"{path} has values that are no finite numbers; export the bundle again")
        b = values["prototype_features"]
        size = b.shape[-1:]
        expected = {
            "prototype_features": (len(values["linear_weight"].T) if linear else num_classes, *size),
            "feature_bank": (*size, *values[bank].shape[1:2]),
            "feature_weight": size,
            "linear_weight": (num_classes, len(b) if b.ndim else 0),
            "linear_bias": (num_classes,),
        }
        if any(array.shape != expected.get(name, ()) for name, array in values.items()):
            shapes = {name: list(array.shape) for name, array in values.items()}
            raise ArtifactError(f"{path} has the shapes {shapes} for {num_classes} classes; export the bundle again")
        self._bank, self._weight = values.get("feature_bank"), values.get("feature_weight", np.ones(size))
        self._prototypes = self._membership(b, self._sharpness)
        self._alpha, self._beta, self._theta, self._scale = (float(values[name]) for name in _SCALARS)
        self._linear = values.get("linear_weight")
        self._bias = values.get("linear_bias", np.zeros(num_classes))

    def __call__(self, embedding: NDArray[np.float32], index: int, label: str, num_features: int) -> Explanation:
        """Explain the logit of class ``index`` for one embedding ``[D]``."""
        a = self._membership(self._project(embedding.astype(np.float64)), self._sharpness)
        own = self._linear is None
        b = _Features(*(values[[index]] if own else values for values in self._prototypes))
        common = self._common(a, b) * (1.0 if self._ratio else self._theta)
        parts = np.stack([common, self._alpha * self._distinctive(a, b), self._beta * self._distinctive(b, a)])
        parts *= self._weight
        offset = self._theta if self._ratio else 0.0
        scale = self._scale
        if self._linear is not None:
            importance = self._linear[index] * scale
            if self._ratio:
                importance = importance / (parts.sum((0, 2)) + offset)
            parts, scale, offset = parts * importance[:, None], 1.0, 0.0
        shares = parts.sum(1)
        c, i, p = (float(part) for part in shares.sum(1))
        bias = float(self._bias[index])
        logit = bias + c - i - p
        if self._ratio:
            logit = bias + (scale * c / (c + i + p + offset) if own else c)
        strongest = np.argsort(-np.abs(shares).max(axis=0), kind="stable")[:num_features]
        features = tuple(FeatureParts(int(k), *(float(part) for part in shares[:, k])) for k in strongest)
        return Explanation(label, index, logit, c, i, p, offset, scale, bias, features)

    def _project(self, x: _Values) -> _Values:
        if self._normalize:
            x = x / max(float(np.linalg.norm(x)), _SHORTEST)
        return np.abs(x) if self._bank is None else self._bank @ x
