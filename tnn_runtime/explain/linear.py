"""How the logit of a linear head came about: what each value of the embedding adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_runtime.explain.base import Values

__all__ = ["LinearExplainer"]


class LinearExplainer(AdditiveExplainer):
    """Explains ``logit = bias + sum of weight * x`` over the values ``x`` of an embedding, which are the features.

    ``head.npz`` has ``weight [C, D]`` and ``bias [C]``. Bundles of linear heads had no such file at first.
    """

    needs_file = False

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        return {"weight": "CD", "bias": "C"}

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        """Return ``weight * x`` of K classes, ``[K, D]``."""
        return np.asarray(self.arrays["weight"][classes] * values)

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the pixels, if the embedding is these."""
        return self.pixel_names

    def bias(self, classes: NDArray[np.int64]) -> Values:
        """Return the biases of K classes, ``[K]``."""
        return np.asarray(self.arrays["bias"][classes])
