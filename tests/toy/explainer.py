"""A family of heads as a newcomer would add one, its part in `tnn_runtime`: without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_runtime.explain.base import Values

SHORTEST = 1e-6


class NearestMeanExplainer(AdditiveExplainer):
    """Explains ``logit = scale * sum of x * mean`` over the values of an embedding and a mean of length 1."""

    def shapes(self, options: Any) -> Mapping[str, str]:
        return {"means": "CD", "scale": ""}

    def prepare(self, embeddings: Values) -> Values:
        return _unit(embeddings)

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        return self.arrays["scale"] * _unit(self.arrays["means"][classes]) * values


def _unit(rows: Values) -> Values:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST)
