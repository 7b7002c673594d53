"""How the logit of a parts head came about: how far each part is in the image, times the weight of the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError
from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_runtime.explain.attributes import attribute_name
from tnn_runtime.explain.base import Values
from tnn_runtime.explain.result import NearPrototype

__all__ = ["PartsExplainer", "part_names"]

_MOST_CLASSES = 3


class PartsExplainer(AdditiveExplainer):
    """Explains ``logit = sum of weight * similarity + bias`` over parts, which are the features.

    The similarity of an image to a part is that of the place most like it. ``head.npz`` has ``weight [C, P]``, ``bias
    [C]``, ``sources [P, 3]`` and the 1x1 convolutions before the parts; of ProtoPNet also ``prototypes [P, K]`` and
    their classes ``owners [P]``. The formulas are those of `tnn_train.heads.parts`.
    """

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        try:
            self._options = options
            is_protopnet = {"protopnet": True, "pipnet": False}[options["kind"]]
            self._has_layers = options["add_on"] if is_protopnet else bool(options["num_parts"])
            self._given = {one["index"]: one["name"] for one in options["names"]}
            found = {"weight": "CP", "bias": "C", "sources": "PS"}
            if not is_protopnet:
                layers = {"place_weight_0": "PD", "place_bias_0": "P"} if self._has_layers else {}
                return found | layers
            {"log": 0, "linear": 0}[options["similarity"]]
            float(options["epsilon"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the form of the parts head, {options!r}, is unknown to this version") from error
        layers = {"place_weight_0": "KD", "place_bias_0": "K", "place_weight_1": "KK", "place_bias_1": "K"}
        size = "K" if self._has_layers else "D"
        return found | {"prototypes": f"P{size}", "owners": "P"} | (layers if self._has_layers else {})

    def prepare(self, embeddings: Values) -> Values:
        """Return the similarities ``[N, P]`` of maps ``[N, D, h, w]`` to the parts."""
        places = embeddings.reshape(*embeddings.shape[:2], -1).transpose(0, 2, 1)
        if self._options["kind"] == "pipnet":
            return self._presences(places)
        if self._has_layers:
            hidden = np.maximum(self._layer(places, 0), 0)
            places = 1 / (1 + np.exp(-np.clip(self._layer(hidden, 1), -_LARGEST, _LARGEST)))
        prototypes = self.arrays["prototypes"]
        centre = prototypes.mean(0)
        z, w = places - centre, prototypes - centre
        apart = (z**2).mean(2, keepdims=True) - 2 / w.shape[1] * (z @ w.T) + (w**2).mean(1)
        nearest = np.maximum(apart.min(1), 0)
        if self._options["similarity"] == "linear":
            return np.asarray(-nearest)
        epsilon = self._options["epsilon"]
        return np.asarray(np.log1p((1 - epsilon) / (nearest + epsilon)))

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        """Return ``weight * similarity`` of K classes, ``[K, P]``."""
        return np.asarray(self.arrays["weight"][classes] * values)

    def bias(self, classes: NDArray[np.int64]) -> Values:
        """Return the biases of K classes, ``[K]``."""
        return np.asarray(self.arrays["bias"][classes])

    @cached_property
    def names(self) -> Sequence[str | None]:
        """The names of the parts."""
        return part_names(self.arrays["weight"], self.arrays.get("owners"), self.class_names, self._given)

    def prototypes(
        self, values: Values, ranked: NDArray[np.int64], index: int, count: int
    ) -> tuple[NearPrototype, ...]:
        """Return the parts that the image has most, with their classes."""
        added, owners = self.terms(values, np.array([index]))[0], self.arrays.get("owners")
        return tuple(
            NearPrototype(
                k, None if owners is None else self.class_names[int(owners[k])], float(values[k]), float(added[k])
            )
            for k in np.argsort(-values, kind="stable")[:count].tolist()
        )

    def placed(self, added: Values, slopes: Values, maps: Values) -> Values:
        """Return the similarities at each place times the weights: what the parts would add if it were the best one."""
        return np.asarray(np.tensordot(slopes, maps, 1))

    def _layer(self, places: Values, number: int) -> Values:
        return np.asarray(places @ self.arrays[f"place_weight_{number}"].T + self.arrays[f"place_bias_{number}"])

    def _presences(self, places: Values) -> Values:
        scores = self._layer(places, 0) if self._has_layers else places
        shares = np.exp(scores - scores.max(2, keepdims=True))
        present, least = (shares / shares.sum(2, keepdims=True)).max(1), self._options["fires_above"]
        return np.asarray(np.maximum((present - least) / (1 - least), 0))


_LARGEST = 700.0
"""Beyond that, a sigmoid is 0 or 1 in float64, and its exponential is infinite."""


def part_names(
    weight: NDArray[Any], owners: NDArray[Any] | None, class_names: Sequence[str], given: Mapping[int, str]
) -> tuple[str, ...]:
    """Return what explanations call parts: ``"part 3 of cat"``.

    Args:
        weight: What each part adds to each class, ``[C, P]``.
        owners: The class of each part, ``[P]``; ``None`` where a part is of the classes that it adds to.
        class_names: The names of the classes.
        given: What a person calls parts, by number.
    """
    names = []
    for part in range(weight.shape[1]):
        classes = np.flatnonzero(weight[:, part] > 0).tolist() if owners is None else [int(owners[part])]
        of = attribute_name([class_names[index] for index in classes]) if len(classes) <= _MOST_CLASSES else ""
        names.append(given.get(part, f"part {part} of {of}" if of else f"part {part}"))
    return tuple(names)
