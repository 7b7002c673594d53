"""Within which radius no perturbation of an embedding changes an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tnn_runtime.errors import UsageError

__all__ = ["NORMS", "Certificate"]

NORMS: Mapping[str, tuple[float, float]] = {"l1": (1, np.inf), "l2": (2, 2), "linf": (np.inf, 1)}
"""The norms of perturbations by name: the order of each, and that of its dual norm, which gradients are measured in."""


@dataclass(frozen=True)
class Certificate:
    """How far an embedding may move, in any direction, before the answer can change.

    Args:
        space: What may move: ``"embedding"``, what the head takes. It is not the image: how far a change of the image
            moves its embedding is not told.
        method: What it follows from.
        radii: By the norm of the perturbation, one of `NORMS`: shorter ones leave the answer as it is. Two right
            programs may differ at the radius itself, but for rounding.
    """

    space: str
    method: str
    radii: Mapping[str, float]

    def radius(self, norm: str = "l2") -> float:
        """Return the radius in a norm.

        Raises:
            UsageError: If there is none in this norm.
        """
        if norm not in self.radii:
            raise UsageError(f"got the norm {norm!r}; this certificate holds for {', '.join(self.radii)}")
        return self.radii[norm]
