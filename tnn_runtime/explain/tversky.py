"""How a Tversky logit came about: its common, input-only and prototype-only parts, and the nearest prototypes.

All is computed from the embedding and the head's tensors in float64, term by term: `tnn_runtime.explain.measures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError
from tnn_runtime.explain.attributes import feature_names
from tnn_runtime.explain.base import Added, Counts, Explainer, Pairs, Values, contrasts, pairs, strongest
from tnn_runtime.explain.measures import DISTINCTIVE, MEMBERSHIPS, Features, common_of
from tnn_runtime.explain.places import proportions, reliability
from tnn_runtime.explain.result import Contrast, Explanation, FeatureParts, NearPrototype, Part, Parted

__all__ = ["MapSums", "TverskyExplainer", "TverskyExplanation", "TverskyFeatureParts"]

_SIGNS = {"common": 1, "input_only": -1, "prototype_only": -1}


class _TverskyParts(Parted):
    """The three parts by name."""

    @property
    def common(self) -> float:
        """Weighted salience of what the input shares with the prototype of the class."""
        return self.part("common").value

    @property
    def input_only(self) -> float:
        """Weighted salience of what the input has and the prototype has not (or has less of)."""
        return self.part("input_only").value

    @property
    def prototype_only(self) -> float:
        """Weighted salience of what the prototype has and the input has not (or has less of)."""
        return self.part("prototype_only").value


@dataclass(frozen=True)
class TverskyFeatureParts(FeatureParts, _TverskyParts):
    """What one feature of the bank adds to the three parts of a `TverskyExplanation`.

    Args:
        by_prototype: Its three parts against each prototype, ``[3][P]``, where `TverskyExplanation.sums` is needed.
    """

    by_prototype: tuple[tuple[float, ...], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class MapSums:
    """What leaving features out takes where a linear map follows the similarities of the ratio model.

    Args:
        weights: Of each similarity in the logit, P values.
        totals: The three parts of each prototype over all features, ``[3][P]``.
        theta: What is added to each denominator.
    """

    weights: tuple[float, ...]
    totals: tuple[tuple[float, ...], ...]
    theta: float


@dataclass(frozen=True)
class TverskyExplanation(Explanation, _TverskyParts):
    """Why a class of a Tversky head got its logit.

    Contrast model: ``logit = common - input_only - prototype_only + bias``.
    Ratio model: ``logit = scale * common / (common + input_only + prototype_only + offset)``, with ``common + offset``
    in the numerator if it is smooth.

    Where a linear map follows the prototypes, each part is a sum over the prototypes, weighted by the map, and negative
    where its weights are. In the ratio model the parts of a prototype are then shares of its denominator, so that
    ``logit = common + bias``, and ``input_only`` and ``prototype_only`` are what the similarities fell short of 1 by.
    If the model is smooth, ``logit = common + offset + bias``.

    Args:
        model: The model of the head.
        offset: theta in the ratio model, 0 in the contrast model. Where a linear map follows, what theta adds to the
            logit: 0 unless the model is smooth.
        scale: The learned logit scale of the ratio model, 1 in the contrast model or where a linear map follows.
        smooth: Whether the ratio model has theta in its numerator, too.
        sums: What `without` needs where a linear map follows the ratio model; ``None`` elsewhere.
    """

    features: tuple[TverskyFeatureParts, ...]
    model: Literal["contrast", "ratio"] = "contrast"
    offset: float = 0.0
    scale: float = 1.0
    smooth: bool = field(default=False, repr=False)
    sums: MapSums | None = field(default=None, repr=False)

    @property
    def formula(self) -> str:
        """How the logit follows from the parts, for people to read."""
        if self.model == "contrast":
            return super().formula
        if self.sums is not None:
            return "common + offset + bias" if self.smooth else "common + bias"
        numerator = "(common + offset)" if self.smooth else "common"
        return f"scale * {numerator} / (common + input_only + prototype_only + offset)"

    def without(self, features: Iterable[int]) -> float:
        """Return what the logit would be if neither the input nor any prototype had these features.

        The embedding stays as it is. In the contrast model the logit moves by the parts of the features.

        Args:
            features: Indices of features that `features` lists.

        Raises:
            UsageError: If one of them is not listed.
        """
        gone = [self.features[place] for place in self._places(features)]
        if self.sums is None:
            sums = MapSums((self.scale,), _column(self.parts), self.offset)
            shares = [_column(feature.parts) for feature in gone]
        else:
            sums, shares = self.sums, [feature.by_prototype for feature in gone]
        left = np.array(sums.totals)
        left -= np.array(shares).reshape(-1, *left.shape).sum(0)
        similarities = _similarity(left, sums.theta if self.model == "ratio" else None, smooth=self.smooth)
        return float(np.array(sums.weights) @ similarities) + self.bias


_SCALARS = ("alpha", "beta", "theta", "logit_scale")
_SHORTEST = 1e-6
_BLOCK = 1 << 15
"""How many values of a pairwise array are computed at once: as many as the caches of a processor hold."""


class _Mapped(NamedTuple):
    """Sums over all prototypes for K classes that a linear map makes of them."""

    weights: Values
    """Of each similarity in the logits, ``[K, P]``."""

    totals: Values
    """The parts of each prototype over all features, ``[3, P]``."""

    shares: Values
    """The parts of each feature, ``[3, K, F]``; in the ratio model as shares of the denominators."""

    added: Values
    """What each feature adds to the logits, ``[K, F]``."""

    offsets: Values
    """What theta adds to the logits, ``[K]``."""


class TverskyExplainer(Explainer):
    """Explains the logits of a Tversky head.

    ``head.npz`` has ``prototype_features [P, F]`` (the prototypes in feature space, as the head computed them), the
    scalars ``alpha``, ``beta``, ``theta`` and ``logit_scale``; ``feature_bank [F, D]`` or, for a diagonal bank,
    ``feature_weight [F]``; and ``linear_weight [C, P]`` and ``linear_bias [C]`` if a linear map follows the prototypes.
    Where features have opposites, the bank is ``[F / 2, D]``. ``thresholds`` has a value for each of its rows, if the
    head has thresholds, and ``feature_weight [F]`` is there, too, if features are left out. The options are the
    ``tversky`` part of the model configuration; what older versions did not write has the value that it had then.
    """

    def __init__(
        self,
        path: Path,
        options: Any,
        class_names: Sequence[str],
        size: int,
        content: bytes | None = None,
        temperature: float | None = None,
    ) -> None:
        try:
            self._is_ratio = {"contrast": False, "ratio": True}[options["model"]]
            self._common = common_of(options["intersection"], is_ratio=self._is_ratio)
            self._distinctive = DISTINCTIVE[options["difference"]]
            self._membership = MEMBERSHIPS[options["membership"]]
            self._sharpness = float(options["sharpness"])
            self._normalize = bool(options["normalize"])
            self._has_bank = {"learned": True, "diagonal": False}[options["feature_bank"]]
            self._has_map = options["num_prototypes"] is not None
            self._has_thresholds, self._smooth = (
                {"False": False, "True": True}[repr(options.get(name, False))] for name in ("thresholds", "smooth")
            )
            self._opposites = _factor(options.get("opposites", 0.0))
            attributes = _attributes(options.get("attributes", ()), len(class_names))
            dropped, given = _numbers(options.get("dropped", ())), _given(options.get("names", ()))
            self._is_weighted = bool(dropped)
            _known_space(options.get("prototype_space", "embedding"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            named = isinstance(options, Mapping)
            long = ("attributes", "dropped", "names")
            form = {name: options[name] for name in options if name not in long} if named else options
            raise ArtifactError(f"the form {form} cannot be explained by this version; upgrade tnn-deploy") from error
        super().__init__(path, options, class_names, size, content, temperature)
        values = self.arrays
        prototypes = values["prototype_features"]
        self._names = self._feature_names(path, attributes, prototypes.shape[1], given)
        self._kept = np.setdiff1d(np.arange(prototypes.shape[1]), dropped)
        if len(self._kept) != prototypes.shape[1] - len(dropped) or not len(self._kept):
            raise ArtifactError(
                f"{path} has {prototypes.shape[1]} features, and those that are left out are {dropped}; export the "
                "bundle again"
            )
        self._bank = values.get("feature_bank")
        self._thresholds = values.get("thresholds")
        self._weight = values.get("feature_weight", np.ones(prototypes.shape[1]))
        self._prototypes = self._membership(prototypes, self._sharpness)
        self._alpha, self._beta, theta, self._scale = (float(values[name]) for name in _SCALARS)
        self._theta = 1.0 if self._is_ratio else theta
        self._offset = theta if self._is_ratio else None
        self._linear = values.get("linear_weight")
        self._bias = values.get("linear_bias", np.zeros(len(self.class_names)))

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        features, owners = "F" if self._has_bank else "D", "P" if self._has_map else "C"
        rows = "H" if self._opposites else features
        bank = {"feature_bank": f"{rows}D"} if self._has_bank else {}
        weight = {"feature_weight": features} if self._is_weighted or not self._has_bank else {}
        thresholds = {"thresholds": rows} if self._has_thresholds else {}
        linear = {"linear_weight": "CP", "linear_bias": "C"} if self._has_map else {}
        return {
            "prototype_features": owners + features,
            **dict.fromkeys(_SCALARS, ""),
            **bank,
            **weight,
            **thresholds,
            **linear,
        }

    def _feature_names(
        self,
        path: Path,
        attributes: Sequence[tuple[str | None, Sequence[int]]],
        size: int,
        given: Mapping[int, str],
    ) -> Sequence[str | None]:
        """Return the names of the features, ``None`` for those without one."""
        if not self._opposites:
            return feature_names((), self.class_names, size, given, has_opposites=False)
        rows = len(self.arrays["feature_bank"])
        if size != 2 * rows or len(attributes) > rows:
            raise ArtifactError(
                f"{path} has {rows} rows of the bank for {size} features and their opposites, and {len(attributes)} "
                "attributes; export the bundle again"
            )
        return feature_names(attributes, self.class_names, size, given, has_opposites=True)

    def prepare(self, embeddings: Values) -> Values:
        """Return the feature values ``[N, F]`` of embeddings ``[N, D]``."""
        if self._normalize:
            embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), _SHORTEST)
        values = np.abs(embeddings) if self._bank is None else embeddings @ self._bank.T
        if self._thresholds is not None:
            values = values - self._thresholds
        return np.concatenate([values, -self._opposites * values], axis=1) if self._opposites else values

    def explain(self, values: Values, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain the best classes of one image from its feature values ``[F]``."""
        features = self._membership(values, self._sharpness)
        explain = self._explain if self._linear is None else self._explain_map
        return explain(features, ranked, scores, counts)

    def feature_parts(self, values: Values, index: int) -> Values:
        """Return the common, input-only and prototype-only part of each feature, ``[3, F]``."""
        features, classes = self._membership(values, self._sharpness), np.array([index])
        if self._linear is None:
            return self._parts(features, classes)[:, 0]
        return self._mapped(features, classes).shares[:, 0]

    def slopes(self, added: Values, values: Values, maps: Values) -> Values:
        """Return how much a place adds for each unit of a feature, ``[3, F]``.

        What the image has is spread in proportion to the map. What only the prototype has lies nowhere in the image.
        """
        slopes: Values = proportions(added, np.maximum(values, 0)) * reliability(values, maps)
        slopes[list(_SIGNS).index("prototype_only")] = 0
        return slopes

    def logit_map(self, explanation: Explanation, parts: Values) -> Values:
        """Return the map of the logit: in the ratio model that of what is shared, as a share of the denominator."""
        assert isinstance(explanation, TverskyExplanation)
        if not self._is_ratio:
            return super().logit_map(explanation, parts)
        common, offset = parts[0], explanation.offset
        if self._linear is not None:
            return np.asarray(common + offset)
        whole = sum(part.value for part in explanation.parts) + offset
        return np.asarray(explanation.scale * (common + self._smooth * offset) / whole)

    def _explain(self, a: Features, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain classes that own a prototype each: only those with the largest logits have to be measured."""
        parts = self._parts(a, ranked)
        totals = parts.sum(2)
        similarities = self._similarity(totals)
        compared = pairs(ranked, counts)
        places = compared.places
        apart = self._contrasts(
            compared,
            ranked,
            a,
            self._scale * self._lost(totals[:, places], parts[:, places]),
            self._scale * self._lost(totals[:, places], _each_alone(totals[:, places])),
            self._scale * similarities[places],
            scores,
            counts,
        )
        near = np.argsort(-similarities, kind="stable")[: counts.prototypes]
        explanations: list[Explanation] = []
        for place, contrast in enumerate(apart):
            index = int(ranked[place])
            prototypes = tuple(
                NearPrototype(
                    int(ranked[other]),
                    self.class_names[ranked[other]],
                    float(similarities[other]),
                    self._scale * float(similarities[other]) if other == place else 0.0,
                )
                for other in near
            )
            explanations.append(
                self._explanation(
                    index, scores, parts[:, place], self._offset or 0.0, prototypes, contrast, counts.features
                )
            )
        return explanations

    def _explain_map(self, a: Features, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain classes that a linear map makes of all prototypes."""
        compared = pairs(ranked, counts)
        classes = ranked[compared.places]
        weights, totals, shares, added, offsets = self._mapped(a, classes)
        similarities = self._similarity(totals)
        near = np.argsort(-similarities, kind="stable")[: counts.prototypes]
        by_part = weights @ self._lost(totals, _each_alone(totals))
        logits = weights @ similarities + self._bias[classes]
        apart = self._contrasts(compared, ranked, a, added, by_part, logits, scores, counts)
        explanations: list[Explanation] = []
        for place, contrast in enumerate(apart):
            index = int(classes[place])
            prototypes = tuple(
                NearPrototype(int(p), None, float(similarities[p]), float(weights[place, p] * similarities[p]))
                for p in near
            )
            one = self._explanation(
                index, scores, shares[:, place], float(offsets[place]), prototypes, contrast, counts.features
            )
            if self._offset is not None:
                listed = self._parts(a, slice(None), np.array([feature.index for feature in one.features]))
                one = replace(
                    one,
                    features=tuple(
                        replace(feature, by_prototype=_tuples(listed[:, :, k]))
                        for k, feature in enumerate(one.features)
                    ),
                    sums=MapSums(tuple(weights[place].tolist()), _tuples(totals), self._offset),
                )
            explanations.append(one)
        return explanations

    def _lost(self, totals: Values, gone: Values) -> Values:
        """Return what similarities of the parts ``[3, p]`` lose without each of n things, ``[p, n]``.

        Args:
            totals: The parts.
            gone: What each thing adds to them, ``[3, p, n]``.
        """
        left = totals[:, :, None] - gone
        return self._similarity(totals)[:, None] - self._similarity(left)

    def _mapped(self, a: Features, classes: NDArray[np.int64]) -> _Mapped:
        """Sum up over all prototypes, a block of them at a time, for classes that a linear map makes of them."""
        assert self._linear is not None
        weights = self._linear[classes] * self._scale
        count, size = self._prototypes.salience.shape
        totals, shares, added = np.empty((3, count)), np.zeros((3, len(classes), size)), np.zeros((len(classes), size))
        offsets = np.zeros(len(classes))
        step = max(1, _BLOCK // size)
        for start in range(0, count, step):
            block = slice(start, start + step)
            parts = self._parts(a, block)
            totals[:, block] = parts.sum(2)
            importance = weights[:, block]
            added += importance @ self._lost(totals[:, block], parts)
            if self._offset is not None:
                importance = importance / (totals[:, block].sum(0) + self._offset)
                offsets += self._smooth * self._offset * importance.sum(1)
            shares += importance @ parts
        return _Mapped(weights, totals, shares, added, offsets)

    def _similarity(self, parts: Values) -> Values:
        return _similarity(parts, self._offset, smooth=self._smooth)

    def _contrasts(
        self,
        compared: Pairs,
        ranked: NDArray[np.int64],
        a: Features,
        by_feature: Values,
        by_part: Values,
        logits: Values,
        scores: Values,
        counts: Counts,
    ) -> list[Contrast | None]:
        """Set classes apart by what their logits ``[K]`` lose without each feature ``[K, F]``, and part ``[K, 3]``."""
        classes, signs = ranked[compared.places], np.array([*_SIGNS.values()])
        added = Added(
            by_feature,
            self._bias[classes],
            lambda one, other: _named(((by_part[one] - by_part[other]) * signs + 0.0).tolist()),
            logits if self._is_ratio else None,
            self._names,
            a.salience > 0,
        )
        return contrasts(compared, classes, added, self.class_names, scores, counts.features)

    def _explanation(
        self,
        index: int,
        scores: Values,
        parts: Values,
        offset: float,
        prototypes: tuple[NearPrototype, ...],
        contrast: Contrast | None,
        num_features: int,
    ) -> TverskyExplanation:
        """Put an explanation together from the parts of each feature, ``[3, F]``, and from what theta adds."""
        c, i, p = parts.sum(1).tolist()
        bias, is_own = float(self._bias[index]), self._linear is None
        scale = self._scale if is_own else 1.0
        logit = bias + c - i - p
        if self._is_ratio:
            logit = scale * float(self._similarity(np.array([c, i, p]))) if is_own else c + offset + bias
        return TverskyExplanation(
            label=self.class_names[index],
            index=index,
            score=float(scores[index]),
            logit=logit,
            parts=_named((c, i, p)),
            bias=bias,
            features=tuple(
                TverskyFeatureParts(k, _named(parts[:, k].tolist()), self._names[k])
                for k in self._kept[strongest(parts[:, self._kept], num_features)].tolist()
            ),
            prototypes=prototypes,
            contrast=contrast,
            model="ratio" if self._is_ratio else "contrast",
            offset=offset,
            scale=scale,
            smooth=self._smooth,
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


def _factor(value: Any) -> float:
    """Return the factor of the opposites.

    Raises:
        ValueError: If it is no finite number from 0 on.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"opposites is {value!r}; expected a number from 0 on")
    return float(value)


def _known_space(value: Any) -> None:
    """Refuse a space of the prototypes that this version does not know: ``head.npz`` has their features in either.

    Raises:
        ValueError: If it is unknown.
    """
    if value not in ("embedding", "feature"):
        raise ValueError(f"prototype_space is {value!r}; expected embedding or feature")


def _attributes(value: Any, num_classes: int) -> list[tuple[str | None, list[int]]]:
    """Return the name of each attribute, and the classes that have it.

    Raises:
        KeyError, TypeError, ValueError: If they are none of these classes.
    """
    found = [(one["name"], list(one["classes"])) for one in value]
    for name, classes in found:
        is_known = classes and all(type(index) is int and 0 <= index < num_classes for index in classes)
        if not is_known or not isinstance(name, str | None):
            raise ValueError(f"an attribute is {name!r} of the classes {classes}; expected classes below {num_classes}")
    return found


def _numbers(value: Any) -> list[int]:
    """Return the numbers of features.

    Raises:
        TypeError, ValueError: If they are none, or one is there twice.
    """
    found = list(value)
    if not all(type(index) is int and index >= 0 for index in found) or len(set(found)) < len(found):
        raise ValueError(f"got the features {found}; expected numbers from 0 on, each once")
    return found


def _given(value: Any) -> dict[int, str]:
    """Return the names that a person gave to features, by their numbers.

    Raises:
        KeyError, TypeError, ValueError: If they are none.
    """
    names = [one["name"] for one in value]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"got the names {names}; expected text")
    return dict(zip(_numbers(one["index"] for one in value), names, strict=True))


def _similarity(parts: Values, offset: float | None, *, smooth: bool) -> Values:
    """Return the similarities of the three parts ``[3, ...]``: of the ratio model if there is an offset."""
    common, input_only, prototype_only = parts
    if offset is None:
        return np.asarray(common - input_only - prototype_only)
    numerator = common + offset if smooth else common
    return np.asarray(numerator / (common + input_only + prototype_only + offset))


def _each_alone(totals: Values) -> Values:
    """Return each of the three parts ``[3, p]`` beside two of nothing, ``[3, p, 3]``."""
    return np.eye(3)[:, None, :] * totals[:, :, None]


def _named(values: Sequence[float]) -> tuple[Part, ...]:
    """Return the three parts with their names and signs."""
    return tuple(Part(name, sign, value) for (name, sign), value in zip(_SIGNS.items(), values, strict=True))


def _tuples(values: Values) -> tuple[tuple[float, ...], ...]:
    """Return the rows of a matrix as tuples."""
    return tuple(map(tuple, values.tolist()))


def _column(parts: Sequence[Part]) -> tuple[tuple[float, ...], ...]:
    """Return parts as those of one prototype, ``[3][1]``."""
    return tuple((part.value,) for part in parts)
