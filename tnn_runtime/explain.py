"""How a Tversky logit came about: its common, input-only and prototype-only parts, in plain NumPy.

The sums here are the definitions (arXiv 2506.11035, section 2), term by term, for one class at a time; the fast
forms of the same measures are in the model's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError
from tnn_runtime.storage import read_arrays

__all__ = ["Explanation", "FeatureParts", "HeadExplainer"]

_Vector = NDArray[np.float64]


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

    Contrast model: ``logit = common - input_only - prototype_only``.
    Ratio model: ``logit = scale * common / (common + input_only + prototype_only + offset)``.

    Args:
        label: Name of the class.
        index: Its position among the logits.
        logit: The logit that the parts add up to.
        common: Weighted salience of the features that the input shares with the prototype of the class.
        input_only: Weighted salience of what the input has and the prototype has not (or has less of).
        prototype_only: Weighted salience of what the prototype has and the input has not (or has less of).
        offset: theta in the ratio model, 0 in the contrast model.
        scale: The learned logit scale of the ratio model, 1 in the contrast model.
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
    features: tuple[FeatureParts, ...]


def _product(a: _Vector, b: _Vector) -> _Vector:
    return np.maximum(a, 0) * np.maximum(b, 0)


def _ignorematch(a: _Vector, b: _Vector) -> _Vector:
    return np.asarray(np.where(b <= 0, np.maximum(a, 0), 0))


def _subtractmatch(a: _Vector, b: _Vector) -> _Vector:
    return np.asarray(np.maximum(np.maximum(a, 0) - np.maximum(b, 0), 0))


_Measure = Callable[[_Vector, _Vector], _Vector]
_COMMON: dict[str, _Measure] = {"product": _product}
_SCALARS = ("alpha", "beta", "theta", "logit_scale")
_DISTINCTIVE: dict[str, _Measure] = {"ignorematch": _ignorematch, "subtractmatch": _subtractmatch}


class HeadExplainer:
    """Explains the logits of a Tversky head from embeddings.

    Args:
        path: ``head.npz`` of a bundle: ``feature_bank [F, D]``, ``prototype_features [P, F]`` (the prototypes in
            feature space, as the head computed them), scalars ``alpha``, ``beta``, ``theta`` and ``logit_scale``.
        config: The ``tversky`` part of the model configuration in the manifest.
        num_classes: P, which the file must agree with.

    Raises:
        ArtifactError: If the file cannot be read, or the head has a form that this version cannot explain.
    """

    def __init__(self, path: Path, config: Any, num_classes: int) -> None:
        names = ("feature_bank", "prototype_features", *_SCALARS)
        values = {name: array.astype(np.float64) for name, array in read_arrays(path, *names).items()}
        self._bank, self._prototype_features = values["feature_bank"], values["prototype_features"]
        if [array.ndim for array in values.values()] != [2, 2, 0, 0, 0, 0] or self._prototype_features.shape != (
            num_classes,
            len(self._bank),
        ):
            shapes = {name: list(array.shape) for name, array in values.items()}
            raise ArtifactError(f"{path} has the shapes {shapes} for {num_classes} classes; export the bundle again")
        self._alpha, self._beta, self._theta, self._scale = (float(values[name]) for name in _SCALARS)
        try:
            self._common = _COMMON[config["intersection"]]
            self._distinctive = _DISTINCTIVE[config["difference"]]
            self._ratio = {"contrast": False, "ratio": True}[config["model"]]
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the form {config} cannot be explained by this version; upgrade tnn-deploy") from error

    def __call__(self, embedding: NDArray[np.float32], index: int, label: str, num_features: int) -> Explanation:
        """Explain the logit of class ``index`` for one embedding ``[D]``."""
        a, b = self._bank @ embedding.astype(np.float64), self._prototype_features[index]
        common = self._common(a, b) * (1.0 if self._ratio else self._theta)
        input_only = self._alpha * self._distinctive(a, b)
        prototype_only = self._beta * self._distinctive(b, a)
        parts = np.stack([common, input_only, prototype_only])
        c, i, p = (float(part) for part in parts.sum(axis=1))
        offset = self._theta if self._ratio else 0.0
        logit = self._scale * c / (c + i + p + offset) if self._ratio else c - i - p
        strongest = np.argsort(-np.abs(parts).max(axis=0), kind="stable")[:num_features]
        features = tuple(FeatureParts(int(k), *(float(part) for part in parts[:, k])) for k in strongest)
        return Explanation(label, index, logit, c, i, p, offset, self._scale, features)
