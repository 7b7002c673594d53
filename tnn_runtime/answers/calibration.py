"""How far the scores of answers can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """How far the confidence of the answers can be trusted (Guo et al. 2017, arXiv 1706.04599, section 2).

    Args:
        confidence: Mean confidence of the answers in each bin, float64 ``[bins]``; NaN in an empty bin.
        accuracy: Share of right answers in each bin, float64 ``[bins]``; NaN in an empty bin.
        share: Share of all answers in each bin, float64 ``[bins]``, which sums to 1.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, confidence: NDArray[np.floating[Any]], is_right: NDArray[np.bool_], bins: int = 15) -> Self:
        """Sort answers by confidence into ``bins`` of equal width, ``((b - 1) / bins, b / bins]``.

        Args:
            confidence: The probability of the predicted class, ``[N]``, N at least 1.
            is_right: Which predictions are right, ``[N]``.
            bins: How many bins.
        """
        confidence = confidence.astype(np.float64)
        places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        counts = np.bincount(places, minlength=bins)
        right = np.bincount(places, is_right, bins)
        with np.errstate(invalid="ignore"):
            return cls(np.bincount(places, confidence, bins) / counts, right / counts, counts / len(places))

    @property
    def ece(self) -> float:
        """The expected calibration error, 0 to 1: the mean of ``|accuracy - confidence|`` over the answers (eq. 3)."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))
