"""How the logit of a similarity matching head came about: what each unit of its circuit adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError
from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_runtime.explain.base import Values, strongest
from tnn_runtime.explain.result import Explanation

__all__ = ["MatchingExplainer", "MatchingExplanation", "ValueShare"]

_LINEAR, _NON_NEGATIVE = "linear", "non-negative"


@dataclass(frozen=True)
class ValueShare:
    """What one value of the embedding adds to the logit through all units of a linear circuit.

    Args:
        index: Its position in the embedding.
        value: What its difference from the mean over the training images adds.
    """

    index: int
    value: float


@dataclass(frozen=True)
class MatchingExplanation(Explanation):
    """Why a class of a linear similarity matching head got its logit: each unit adds its activity times a weight.

    Args:
        embedding: The values of the embedding that add most through a linear circuit, strongest first. Over all values
            they add up to ``supporting - opposing``, as the units do. As many are listed as units.
    """

    embedding: tuple[ValueShare, ...] = ()


class MatchingExplainer(AdditiveExplainer):
    """Explains ``logit = bias + sum of weight * y`` over the units ``y``, which are the features.

    They are where the circuit comes to from ``y = 0`` with the drive ``b = drive (x - center)``: after ``iterations``
    times ``y <- max(y + step (b - lateral y), 0)`` if it is non-negative, and at ``lateral^-1 b`` if it is linear. What
    each value of the embedding adds is told of linear circuits only: in others it depends on all the other values.
    """

    def __call__(
        self, embeddings: NDArray[np.float32], logits: NDArray[np.float32], *args: Any, **options: Any
    ) -> list[list[Explanation]]:
        """Explain the best classes of each image, for a linear circuit by the values of the embedding, too."""
        explained = super().__call__(embeddings, logits, *args, **options)
        if not self._is_linear:
            return explained
        moved = embeddings.astype(np.float64) - self.arrays["center"]
        return [
            [self._with_values(one, values) for one in explanations]
            for explanations, values in zip(explained, moved, strict=True)
        ]

    def _with_values(self, explanation: Explanation, moved: Values) -> MatchingExplanation:
        """Return an explanation with what the values of an embedding, less their means ``[D]``, add to its logit."""
        row = np.linalg.solve(self.arrays["lateral"], self.arrays["weight"][explanation.index]) @ self.arrays["drive"]
        added = row * moved
        listed = strongest(added, len(explanation.features)).tolist()
        plain = {field.name: getattr(explanation, field.name) for field in fields(explanation)}
        return MatchingExplanation(**plain, embedding=tuple(ValueShare(k, float(added[k])) for k in listed))

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        activation = options.get("activation") if isinstance(options, Mapping) else None
        if activation not in (_LINEAR, _NON_NEGATIVE):
            raise ArtifactError(
                f"the manifest has a matching head with the activation {activation!r}; this version knows "
                f"{_LINEAR} and {_NON_NEGATIVE}: upgrade tnn_runtime"
            )
        self._is_linear = activation == _LINEAR
        return {
            "weight": "CK",
            "bias": "C",
            "drive": "KD",
            "center": "D",
            "lateral": "KK",
            "step": "",
            "iterations": "",
        }

    def prepare(self, embeddings: Values) -> Values:
        """Return the activities of the units, ``[N, K]``."""
        drive, lateral = (embeddings - self.arrays["center"]) @ self.arrays["drive"].T, self.arrays["lateral"]
        if self._is_linear:
            return np.asarray(np.linalg.solve(lateral, drive.T).T)
        values = np.zeros_like(drive)
        for _ in range(int(self.arrays["iterations"])):
            values = np.maximum(values + self.arrays["step"] * (drive - values @ lateral), 0)
        return values

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        """Return ``weight * y`` of K classes, ``[K, units]``."""
        return np.asarray(self.arrays["weight"][classes] * values)

    def bias(self, classes: NDArray[np.int64]) -> Values:
        """Return the biases of K classes, ``[K]``."""
        return np.asarray(self.arrays["bias"][classes])
