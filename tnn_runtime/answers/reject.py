"""Scores that tell how sure a classifier is of an image, and the threshold below which an image is rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.density import Density
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.ranking import logsumexp, softmax
from tnn_runtime.errors import UsageError

__all__ = [
    "ALL_SCORES",
    "DENSITY_SCORES",
    "SCORES",
    "Reject",
    "calibrate",
    "check_score",
    "check_threshold",
    "fewest_samples",
]

Logits = NDArray[np.float32]
Embeddings = NDArray[np.float32]
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


def distance(embeddings: Embeddings, density: Density) -> Scores:
    """Return minus the distance of each embedding to the nearest prototype."""
    return np.asarray(-density.distances(embeddings).min(axis=1), np.float32)


def confidence(embeddings: Embeddings, density: Density) -> Scores:
    """Return how much nearer the nearest prototype is than that of any other class, 0 to 1; 1 if there is one class.

    That is ``(d2 - d1) / (d2 + d1)``, the relative similarity of Fischer, Hammer & Wersing 2015, "Efficient rejection
    strategies for prototype-based classification" (Neurocomputing 169), with squared distances.
    """
    squares = np.sort(density.class_distances(embeddings) ** 2, axis=1)
    if squares.shape[1] == 1:
        return np.ones(len(squares), np.float32)
    first, second = squares[:, 0], squares[:, 1]
    total = first + second
    return np.asarray(np.divide(second - first, total, out=np.zeros_like(total), where=total > 0), np.float32)


def vmf(embeddings: Embeddings, density: Density) -> Scores:
    """Return the logarithm of the density of a mixture of von Mises-Fisher distributions at each embedding."""
    return np.asarray(density.log_likelihood(embeddings), np.float32)


DENSITY_SCORES: dict[str, Callable[[Embeddings, Density], Scores]] = {
    "distance": distance,
    "confidence": confidence,
    "vmf": vmf,
}
"""For each name, what computes scores ``[N]`` from embeddings and the density of those of the training images."""

ALL_SCORES = (*SCORES, *DENSITY_SCORES)
"""The names of all scores."""


@dataclass(frozen=True)
class Reject:
    """Which images to reject: those whose score is below the threshold.

    Args:
        score: The name of the score, one of `ALL_SCORES`.
        threshold: What accepted images reach; ``None`` where there were too few samples to find it.
        coverage: The share of images like the samples that is to be accepted, between 0 and 1.
        samples: How many held-out images there were to find the threshold on.
    """

    score: str
    threshold: float | None
    coverage: float
    samples: int

    @property
    def needs_density(self) -> bool:
        """Whether the score follows from a density of embeddings, and not from the logits."""
        return self.score in DENSITY_SCORES

    def scores(self, outputs: Outputs, density: Density | None = None) -> Scores:
        """Return the score of each image.

        Args:
            outputs: What the model gave.
            density: Of the embeddings of the training images, if the score needs it.
        """
        return _scores(self.score, outputs, density)

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


def calibrate(outputs: Outputs, score: str, coverage: float, density: Density | None = None) -> Reject:
    """Find the threshold that at least a share ``coverage`` of images like the samples reaches.

    Of n samples it is the k-th smallest score, ``k = floor((n + 1) (1 - coverage))``: an image that is drawn as they
    were is below it with a probability of at most k / (n + 1), whatever their distribution (split conformal
    prediction). Where k is 0 they are too few.

    Args:
        outputs: For n held-out samples.
        score: A name of `ALL_SCORES`.
        coverage: The share that is to be accepted, between 0 and 1.
        density: As for `Reject.scores`.
    """
    count = len(outputs.logits)
    rank = math.floor((count + 1) * (1 - coverage) + _ROUNDING)
    threshold = float(np.sort(_scores(score, outputs, density))[rank - 1]) if rank else None
    return Reject(score, threshold, coverage, count)


def _scores(score: str, outputs: Outputs, density: Density | None) -> Scores:
    with np.errstate(over="ignore", invalid="ignore"):
        if score in SCORES:
            return SCORES[score](outputs.logits)
        assert density is not None
        return DENSITY_SCORES[score](outputs.embedding, density)


def fewest_samples(coverage: float) -> int:
    """Return how many samples a coverage needs at least to have a threshold."""
    return math.ceil(1 / (1 - coverage) - _ROUNDING) - 1


_ROUNDING = 1e-9
