"""Means over seeds, and their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

__all__ = ["SHARE", "Estimate"]

SHARE = (0.0, 1.0)
"""The least and the largest that a share can be."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        values: One for each seed, at least one.
        bounds: The least and the largest that such a value can be.
    """

    values: tuple[float, ...]
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean, within the bounds.

        It is Student's. Of shares it is the logit interval: Student's interval of the log-odds, by the delta method.
        ``None`` for one value, or for equal ones, which say nothing of the spread.
        """
        count, mean = len(self.values), self.mean
        if len(set(self.values)) < 2:
            return None
        half = float(student.ppf(0.975, count - 1) * np.std(self.values, ddof=1) / math.sqrt(count))
        if self.bounds == SHARE:
            half /= mean * (1 - mean)
            return float(expit(logit(mean) - half)), float(expit(logit(mean) + half))
        lowest, highest = self.bounds
        return max(mean - half, lowest), min(mean + half, highest)

    def text(self, form: str) -> str:
        """Return the mean and its interval, printed with a format such as ``"+.4f"``.

        In place of the interval stands a dash for one value, and "all equal" for values that are printed alike.
        """
        if len(self.values) < 2:
            interval = "-"
        elif self.interval is None or len({format(value, form) for value in self.values}) < 2:
            interval = "all equal"
        else:
            interval = " to ".join(format(end, form) for end in self.interval)
        return f"{self.mean:{form}} ({interval})"
