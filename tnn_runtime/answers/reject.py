"""Scores that tell how sure a classifier is of an image, and the threshold below which an image is rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import logsumexp, softmax
from tnn_runtime.errors import UsageError

__all__ = ["SCORES", "Reject", "calibrate", "check_score", "check_threshold", "fewest_samples"]

Logits = NDArray[np.float32]
Scores = NDArray[np.float32]


def probability(logits: Logits) -> Scores:
    """Return the largest softmax probability of each row of logits ``[N, C]``, 0 to 1."""
    return np.asarray(softmax(logits.astype(np.float64)).max(axis=1), np.float32)


def logit(logits: Logits) -> Scores:
    """Return the largest logit of each row: of a Tversky head, how similar the nearest prototype is."""
    return np.asarray(logits.max(axis=1), np.float32)


def energy(logits: Logits) -> Scores:
    """Return log(sum(exp(logits))) of each row, the negative energy of arXiv 2010.03759."""
    return np.asarray(logsumexp(logits.astype(np.float64)), np.float32)


def lead(logits: Logits) -> Scores:
    """Return the largest logit of each row plus its lead over the second: high where a class fits, and fits alone."""
    largest = logits.max(axis=1)
    second = np.partition(logits, -2, axis=1)[:, -2] if logits.shape[1] > 1 else largest
    return np.asarray(2 * largest - second, np.float32)


SCORES: dict[str, Callable[[Logits], Scores]] = {
    "lead": lead,
    "probability": probability,
    "logit": logit,
    "energy": energy,
}
"""For each name, what computes scores ``[N]`` from logits ``[N, C]``: the larger, the surer."""


@dataclass(frozen=True)
class Reject:
    """Which images to reject: those whose score is below the threshold.

    Args:
        score: The name of the score, one of `SCORES`.
        threshold: What accepted images reach; ``None`` where there were too few samples to find it.
        coverage: The share of images like the samples that is to be accepted, between 0 and 1.
        samples: How many held-out images there were to find the threshold on.
    """

    score: str
    threshold: float | None
    coverage: float
    samples: int

    def scores(self, logits: Logits) -> Scores:
        """Return the score of each row of logits ``[N, C]``."""
        with np.errstate(over="ignore", invalid="ignore"):
            return SCORES[self.score](logits)

    def rejects(self, scores: Scores) -> NDArray[np.bool_]:
        """Return which of some scores ``[N]`` reject their image; none if there is no threshold."""
        reached = scores >= (-np.inf if self.threshold is None else self.threshold)
        return np.asarray(~reached)


def check_score(rule: Reject | None) -> Reject:
    """Return a rule that there is.

    Raises:
        UsageError: If there is none.
    """
    if rule is None:
        raise UsageError("this bundle has no reject score; export its checkpoint again, with held-out images")
    return rule


def check_threshold(rule: Reject | None) -> Reject:
    """Return a rule that has a threshold.

    Raises:
        UsageError: If there is none, or it has none.
    """
    rule = check_score(rule)
    if rule.threshold is None:
        raise UsageError(
            f"there is no threshold to reject by: the bundle was made with {rule.samples} held-out images, and a "
            f"coverage of {rule.coverage:g} needs {fewest_samples(rule.coverage)}; export it with more --images, or "
            "with a smaller --coverage"
        )
    return rule


def calibrate(logits: Logits, score: str, coverage: float) -> Reject:
    """Find the threshold that at least a share ``coverage`` of images like the samples reaches.

    Of n samples it is the k-th smallest score, ``k = floor((n + 1) (1 - coverage))``: an image that is drawn as they
    were is below it with a probability of at most k / (n + 1), whatever their distribution (split conformal
    prediction). Where k is 0 they are too few.

    Args:
        logits: Of held-out samples, ``[n, C]``.
        score: A name of `SCORES`.
        coverage: The share that is to be accepted, between 0 and 1.
    """
    count = len(logits)
    rank = math.floor((count + 1) * (1 - coverage) + _ROUNDING)
    threshold = float(np.sort(SCORES[score](logits))[rank - 1]) if rank else None
    return Reject(score, threshold, coverage, count)


def fewest_samples(coverage: float) -> int:
    """Return how many samples a coverage needs at least to have a threshold."""
    return math.ceil(1 / (1 - coverage) - _ROUNDING) - 1


_ROUNDING = 1e-9
