"""How the logit of a logic head came about: which of its gates vote, and which thresholds of the input decide.

A logic head is a circuit, and nothing in it adds up. What can be said exactly is what would happen: the circuit is
evaluated again for each threshold, with the one value on its other side and all else as it is. Such counterfactuals
are the features of these explanations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.circuits import Circuit, circuit_of
from tnn_runtime.explain.base import Added, Counts, Explainer, Values, contrasts, pairs, strongest
from tnn_runtime.explain.result import Explanation, FeatureParts, Part

__all__ = ["LogicExplainer", "LogicExplanation"]

_AT_ONCE = 1 << 24
"""Bits of changed inputs that are made at once."""


@dataclass(frozen=True, eq=False)
class Input:
    """A circuit and an input of it, for questions of what would be.

    Args:
        circuit: The circuit.
        thresholds: What its bits compare values with, ``[D, B]``.
        present: Its bits, ``[D * B]``: which values are above which thresholds.
    """

    circuit: Circuit
    thresholds: Values
    present: NDArray[np.bool_]

    def crossed(self, features: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the bits ``[n, B]`` of the value of each feature if that were just on the other side of its threshold.

        It falls onto the threshold, or rises above it by less than to the next one.
        """
        value, bit = np.divmod(features, self.thresholds.shape[1])
        moved, own = self.thresholds[value, bit][:, None], self.thresholds[value]
        return np.where(self.present[features][:, None], moved > own, moved >= own)

    def votes(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the votes for each class if one feature were crossed, for each of ``features [n]``: ``[n, C]``."""
        bits = self.thresholds.shape[1]
        step = max(64, _AT_ONCE // self.present.size)
        found = [np.empty((0, len(self.circuit.votes)), np.int64)]
        for start in range(0, len(features), step):
            some = features[start : start + step]
            changed = np.repeat(self.present[None], len(some), axis=0)
            places = (some // bits * bits)[:, None] + np.arange(bits)
            changed[np.arange(len(some))[:, None], places] = self.crossed(some)
            found.append(self.circuit.counts(changed))
        return np.concatenate(found)

    def votes_without(self, features: Sequence[int]) -> NDArray[np.int64]:
        """Return the votes for each class, ``[C]``, if all these features were crossed; of one value, the last one."""
        changed = self.present.copy().reshape(self.thresholds.shape)
        changed[np.array(features, np.int64) // self.thresholds.shape[1]] = self.crossed(np.array(features, np.int64))
        return np.asarray(self.circuit.counts(changed.reshape(1, -1))[0])


@dataclass(frozen=True)
class LogicExplanation(Explanation):
    """Why a class of a logic head got its logit: ``votes``, the share of its gates that are on, as the head scales it.

    Each of the features is a threshold, and its part is what the logit would lose if the value were on the other side
    of it, just so far, and all others stayed: exactly, for the circuit was evaluated so. Thresholds of the same value
    that lie between are crossed, too. Such losses do not add up, neither to the logit nor to each other.

    Args:
        gates_on: How many gates of the class are on.
        gates: How many it has.
        temperature: What the number of gates that are on is divided by.
        input: What `without` asks.
    """

    absence: ClassVar[str] = "with the value of each feature on the other side of its threshold"

    gates_on: int = 0
    gates: int = 0
    temperature: float = 1.0
    input: Input | None = field(default=None, repr=False, compare=False)

    def without(self, features: Iterable[int]) -> float:
        """Return what the logit would be with the values of some features on the other side of their thresholds.

        All cross at once, and the circuit is evaluated again. Where thresholds of the same value are named, the value
        crosses the last of them.

        Args:
            features: Indices of features that `features` lists.

        Raises:
            UsageError: If one of them is not listed.
        """
        features = list(features)
        self._places(features)
        if self.input is None or not features:
            return super().without(features)
        return float(self.input.votes_without(features)[self.index]) / self.temperature


class LogicExplainer(Explainer):
    """Explains ``logit = gates that are on / temperature``.

    ``head.npz`` has ``thresholds [D, B]``, ``left``, ``right`` and ``tables [L, W]``, and ``temperature``. Feature
    ``d * B + b`` is whether value d of the embedding is above its threshold b.
    """

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        return {"thresholds": "DB", "left": "LW", "right": "LW", "tables": "LW", "temperature": ""}

    def explain(self, values: Values, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain the best classes of one image."""
        compared = pairs(ranked, counts)
        classes = ranked[compared.places]
        thresholds, temperature = self.arrays["thresholds"], float(self.arrays["temperature"])
        present = (values[:, None] > thresholds).ravel()
        given = Input(self._circuit, thresholds, present)
        votes = self._circuit.counts(present[None])[0, classes]
        losses = np.zeros((len(classes), thresholds.size))
        losses[:, self._crossings] = (votes - given.votes(self._crossings)[:, classes]).T / temperature
        logits = votes / temperature

        def parts(one: int, other: int) -> tuple[Part, ...]:
            return (_votes(logits[one] - logits[other]),)

        biases = np.zeros(len(classes))
        apart = Added(losses, biases, parts, logits, self._names, present)
        gates = self.arrays["left"].shape[1] // len(self.class_names)
        found: list[Explanation] = []
        for place, contrast in enumerate(
            contrasts(compared, classes, apart, self.class_names, scores, counts.features)
        ):
            index, lost = int(classes[place]), losses[place]
            listed = strongest(lost, counts.features).tolist()
            found.append(
                LogicExplanation(
                    label=self.class_names[index],
                    index=index,
                    score=float(scores[index]),
                    logit=float(logits[place]),
                    parts=(_votes(logits[place]),),
                    bias=0.0,
                    features=tuple(FeatureParts(k, (_votes(lost[k]),), self._names[k]) for k in listed),
                    contrast=contrast,
                    gates_on=int(votes[place]),
                    gates=gates,
                    temperature=temperature,
                    input=given,
                )
            )
        return found

    @cached_property
    def _circuit(self) -> Circuit:
        return circuit_of(self.arrays, len(self.class_names))

    @cached_property
    def _crossings(self) -> NDArray[np.int64]:
        """The features that may matter: all thresholds of the values that the circuit looks at."""
        bits = self.arrays["thresholds"].shape[1]
        values = np.unique(self._circuit.bits // bits)
        return np.asarray((values[:, None] * bits + np.arange(bits)).ravel())

    @cached_property
    def _names(self) -> list[str]:
        thresholds = self.arrays["thresholds"]
        if self.pixels is None or self.pixel_names is None:
            return [f"value {d} above {t:.4g}" for d, row in enumerate(thresholds.tolist()) for t in row]
        size = self.pixels.height * self.pixels.width
        mean, std = (np.repeat(numbers, size)[:, None] for numbers in (self.pixels.mean, self.pixels.std))
        levels = np.floor(255 * (thresholds * std + mean)).astype(int).tolist()
        return [f"{pixel} above {level}" for pixel, row in zip(self.pixel_names, levels, strict=True) for level in row]


def _votes(value: float) -> Part:
    return Part("votes", -1 if value < 0 else 1, abs(float(value)))
