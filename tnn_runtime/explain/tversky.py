"""How a Tversky logit came about: its common, input-only and prototype-only parts, and the nearest prototypes.

All is computed from the embedding and the head's tensors in float64, term by term: `tnn_runtime.explain.measures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import largest, softmax
from tnn_runtime.bundle.storage import read_arrays
from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.explain.measures import DISTINCTIVE, MEMBERSHIPS, Features, Values, common_of

__all__ = ["Explanation", "FeatureParts", "HeadExplainer", "NearPrototype"]


@dataclass(frozen=True)
class FeatureParts:
    """What one feature of the bank adds to the three parts of an `Explanation`."""

    index: int
    common: float
    input_only: float
    prototype_only: float


@dataclass(frozen=True)
class NearPrototype:
    """A prototype that is like the input.

    Args:
        index: Its position among the prototypes.
        label: Name of the class that owns it; ``None`` where a linear map follows the prototypes.
        similarity: The Tversky similarity of the input to it: 0 to 1 in the ratio model, unbounded in the contrast
            model.
        contribution: What it adds to the logit of the explained class. Over all prototypes, and with the bias, this is
            the logit. Where each class owns a prototype, those of other classes add nothing.
    """

    index: int
    label: str | None
    similarity: float
    contribution: float


@dataclass(frozen=True)
class _Sums:
    """What a logit is made of, so far as it takes to leave features out: Q prototypes, or what they add up to.

    Args:
        weight: Of each similarity in the logit, ``[Q]``.
        totals: The three parts over all features, ``[3, Q]``.
        parts: Those of the listed features, ``[3, Q, k]``.
        offset: theta in the ratio model; ``None`` in the contrast model.
        bias: What is added.
    """

    weight: Values
    totals: Values
    parts: Values
    offset: float | None
    bias: float

    def logit_without(self, places: Sequence[int]) -> float:
        """Return the logit without some of the listed features."""
        similarities = _similarity(self.totals - self.parts[:, :, places].sum(2), self.offset)
        return float(self.weight @ similarities) + self.bias


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
        score: Softmax probability, 0 to 1.
        logit: The logit that the parts add up to.
        common: Weighted salience of the features that the input shares with the prototype of the class.
        input_only: Weighted salience of what the input has and the prototype has not (or has less of).
        prototype_only: Weighted salience of what the prototype has and the input has not (or has less of).
        offset: theta in the ratio model, 0 in the contrast model or where a linear map follows.
        scale: The learned logit scale of the ratio model, 1 in the contrast model or where a linear map follows.
        bias: That of the linear map, 0 where there is none.
        features: The features with the largest parts, strongest first.
        prototypes: The prototypes that the input is most like, most similar first: the same for every class, but for
            what they contribute.
        sums: What `without` needs.
    """

    label: str
    index: int
    score: float
    logit: float
    common: float
    input_only: float
    prototype_only: float
    offset: float
    scale: float
    bias: float
    features: tuple[FeatureParts, ...]
    prototypes: tuple[NearPrototype, ...] = ()
    sums: InitVar[_Sums | None] = None

    def __post_init__(self, sums: _Sums | None) -> None:
        object.__setattr__(self, "_sums", sums)

    def without(self, features: Iterable[int]) -> float:
        """Return what the logit would be if neither the input nor any prototype had these features.

        The embedding stays as it is. In the contrast model the logit moves by the parts of the features.

        Args:
            features: Indices of features that `features` lists.

        Raises:
            UsageError: If one of them is not listed.
        """
        listed = [feature.index for feature in self.features]
        wanted = set(features)
        sums: _Sums | None = getattr(self, "_sums", None)
        if sums is None or not wanted <= set(listed):
            raise UsageError(
                f"got the features {sorted(wanted)}; expected some of those that this explanation lists, "
                f"{sorted(listed) if sums is not None else 'and one that a classifier made'}: list more with a larger "
                "num_features"
            )
        return sums.logit_without([place for place, index in enumerate(listed) if index in wanted])


_SCALARS = ("alpha", "beta", "theta", "logit_scale")
_SHORTEST = 1e-6
_BLOCK = 1 << 15
"""How many values of a pairwise array are computed at once: as many as the caches of a processor hold."""


class HeadExplainer:
    """Explains the logits of a Tversky head from embeddings.

    Args:
        path: ``head.npz`` of a bundle: ``prototype_features [P, F]`` (the prototypes in feature space, as the head
            computed them), the scalars ``alpha``, ``beta``, ``theta`` and ``logit_scale``; ``feature_bank [F, D]`` or,
            for a diagonal bank, ``feature_weight [F]``; and ``linear_weight [C, P]`` and ``linear_bias [C]`` if a
            linear map follows the prototypes.
        config: The ``tversky`` part of the model configuration in the manifest.
        class_names: C names, which the file must agree with.

    Raises:
        ArtifactError: If the file cannot be read, or the head has a form that this version cannot explain.
    """

    def __init__(self, path: Path, config: Any, class_names: Sequence[str]) -> None:
        self._names, num_classes = tuple(class_names), len(class_names)
        try:
            is_ratio = {"contrast": False, "ratio": True}[config["model"]]
            self._common = common_of(config["intersection"], is_ratio=is_ratio)
            self._distinctive = DISTINCTIVE[config["difference"]]
            self._membership = MEMBERSHIPS[config["membership"]]
            self._sharpness = float(config["sharpness"])
            self._normalize = bool(config["normalize"])
            bank = {"learned": "feature_bank", "diagonal": "feature_weight"}[config["feature_bank"]]
            linear = () if config["num_prototypes"] is None else ("linear_weight", "linear_bias")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the form {config} cannot be explained by this version; upgrade tnn-deploy") from error
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
        self._alpha, self._beta, theta, self._scale = (float(values[name]) for name in _SCALARS)
        self._theta = 1.0 if is_ratio else theta
        self._offset = theta if is_ratio else None
        self._linear = values.get("linear_weight")
        self._bias = values.get("linear_bias", np.zeros(num_classes))

    def __call__(
        self,
        embeddings: NDArray[np.float32],
        logits: NDArray[np.float32],
        top_k: int = 3,
        num_features: int = 5,
        num_prototypes: int = 3,
    ) -> list[list[Explanation]]:
        """Explain the best classes of each image.

        Args:
            embeddings: What the graph gave, ``[N, D]``.
            logits: What it gave with them, ``[N, C]``: they choose the classes.
            top_k: How many classes to explain for each image.
            num_features: How many of the strongest features to list for each class.
            num_prototypes: How many of the nearest prototypes to list.

        Returns:
            For each image its explanations, the class with the largest logit first.
        """
        values = self._project(embeddings.astype(np.float64))
        ranked = largest(logits, max(top_k, num_prototypes))
        explain = self._explain if self._linear is None else self._explain_map
        return [
            explain(self._membership(a, self._sharpness), order, scores, top_k, num_features, num_prototypes)
            for a, order, scores in zip(values, ranked, softmax(logits), strict=True)
        ]

    def _explain(
        self, a: Features, ranked: NDArray[np.int64], scores: Values, top_k: int, num_features: int, num_prototypes: int
    ) -> list[Explanation]:
        """Explain classes that own a prototype each: only those with the largest logits have to be measured."""
        parts = self._parts(a, ranked)
        similarities = _similarity(parts.sum(2), self._offset)
        near = np.argsort(-similarities, kind="stable")[:num_prototypes]
        explanations = []
        for place, index in enumerate(ranked[:top_k].tolist()):
            features = _strongest(parts[:, place], num_features)
            prototypes = tuple(
                NearPrototype(
                    int(ranked[other]),
                    self._names[ranked[other]],
                    float(similarities[other]),
                    self._scale * float(similarities[other]) if other == place else 0.0,
                )
                for other in near
            )
            one = parts[:, [place]]
            sums = _Sums(np.array([self._scale]), one.sum(2), one[:, :, features], self._offset, 0.0)
            explanations.append(self._explanation(index, scores, parts[:, place], features, prototypes, sums))
        return explanations

    def _explain_map(
        self, a: Features, ranked: NDArray[np.int64], scores: Values, top_k: int, num_features: int, num_prototypes: int
    ) -> list[Explanation]:
        """Explain classes that a linear map makes of all prototypes."""
        assert self._linear is not None
        classes = ranked[:top_k]
        weights = self._linear[classes] * self._scale
        count, size = self._prototypes.salience.shape
        totals, shares = np.empty((3, count)), np.zeros((3, len(classes), size))
        step = max(1, _BLOCK // size)
        for start in range(0, count, step):
            block = slice(start, start + step)
            parts = self._parts(a, block)
            totals[:, block] = parts.sum(2)
            importance = weights[:, block]
            if self._offset is not None:
                importance = importance / (totals[:, block].sum(0) + self._offset)
            shares += importance @ parts
        similarities = _similarity(totals, self._offset)
        near = np.argsort(-similarities, kind="stable")[:num_prototypes]
        explanations = []
        for place, index in enumerate(classes.tolist()):
            features = _strongest(shares[:, place], num_features)
            prototypes = tuple(
                NearPrototype(int(p), None, float(similarities[p]), float(weights[place, p] * similarities[p]))
                for p in near
            )
            bias = float(self._bias[index])
            if self._offset is None:
                own = shares[:, [place]]
                sums = _Sums(np.ones(1), own.sum(2), own[:, :, features], None, bias)
            else:
                listed = self._parts(a, slice(None), features)
                sums = _Sums(weights[place], totals, listed, self._offset, bias)
            explanations.append(self._explanation(index, scores, shares[:, place], features, prototypes, sums))
        return explanations

    def _explanation(
        self,
        index: int,
        scores: Values,
        parts: Values,
        features: NDArray[np.int64],
        prototypes: tuple[NearPrototype, ...],
        sums: _Sums,
    ) -> Explanation:
        """Put an explanation together from the parts of each feature, ``[3, F]``, as they add up to the logit."""
        c, i, p = (float(part) for part in parts.sum(1))
        own = self._linear is None
        offset, scale = (self._offset or 0.0, self._scale) if own else (0.0, 1.0)
        logit = sums.bias + c - i - p
        if self._offset is not None:
            logit = scale * c / (c + i + p + offset) if own else sums.bias + c
        return Explanation(
            label=self._names[index],
            index=index,
            score=float(scores[index]),
            logit=logit,
            common=c,
            input_only=i,
            prototype_only=p,
            offset=offset,
            scale=scale,
            bias=sums.bias,
            features=tuple(FeatureParts(int(k), *map(float, parts[:, k])) for k in features),
            prototypes=prototypes,
            sums=sums,
        )

    def _parts(
        self, a: Features, rows: slice | NDArray[np.int64], columns: slice | NDArray[np.int64] = slice(None)
    ) -> Values:
        """Return the three weighted parts ``[3, p, f]`` of one input against some prototypes on some features."""
        a = Features(*(values[columns] for values in a))
        b = Features(*(values[rows][:, columns] for values in self._prototypes))
        weight = self._weight[columns]
        return np.stack(
            [
                self._common(a, b) * (self._theta * weight),
                self._distinctive(a, b) * (self._alpha * weight),
                self._distinctive(b, a) * (self._beta * weight),
            ]
        )

    def _project(self, x: Values) -> Values:
        """Return the feature values ``[N, F]`` of embeddings ``[N, D]``."""
        if self._normalize:
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
        return np.abs(x) if self._bank is None else x @ self._bank.T


def _similarity(parts: Values, offset: float | None) -> Values:
    """Return the similarities of the three parts ``[3, ...]``: of the ratio model if there is an offset."""
    common, input_only, prototype_only = parts
    if offset is None:
        return np.asarray(common - input_only - prototype_only)
    return np.asarray(common / (common + input_only + prototype_only + offset))


def _strongest(parts: Values, count: int) -> NDArray[np.int64]:
    """Return the features with the largest parts ``[3, F]``, strongest first."""
    return np.argsort(-np.abs(parts).max(axis=0), kind="stable")[:count]
