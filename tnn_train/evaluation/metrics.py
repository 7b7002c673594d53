"""A model's answers on a set, and what follows from them: confusion, calibration, and numbers for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.nn import functional

from tnn_runtime.answers.calibration import Calibration
from tnn_runtime.answers.hierarchy import levels_of
from tnn_runtime.answers.reject import SCORES

__all__ = ["ClassScores", "Coverage", "Evaluation", "best_epoch", "paired_difference", "wilson_interval"]

Row = TypeVar("Row", bound=Mapping[str, Any])

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, arrays ``[classes]``; what would be 0 / 0 is NaN.

    Args:
        precision: Share of the images predicted as the class that are of it, float64.
        recall: Share of the images of the class that are predicted as it, float64.
        f1: Harmonic mean of both, float64.
        support: Images of the class, int64.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How accurate the surest answers are.

    Args:
        share: Of all answers, ascending, float64 ``[n]``: answers of equal scores come together.
        accuracy: Of that share of them, those with the largest scores, float64 ``[n]``.
    """

    share: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.floating[Any]], is_right: NDArray[np.bool_]) -> Self:
        """Sort answers by how sure they are.

        Args:
            scores: The larger, the surer, ``[N]``, N at least 1.
            is_right: Which answers are right, ``[N]``.
        """
        order = np.argsort(-scores, kind="stable")
        last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        counts = last + 1.0
        return cls(counts / len(order), np.cumsum(is_right[order])[last] / counts)

    def at(self, share: float) -> float:
        """Return the accuracy of the surest answers that make up at least this share of all."""
        return float(self.accuracy[np.searchsorted(self.share, share - _ROUNDING)])


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a set.

    Args:
        loss: Mean cross-entropy in nats.
        accuracy: Share of right answers, 0 to 1.
        logits: What the model gave, float32 ``[N, classes]``.
        labels: The right class indices, int64 ``[N]``.
    """

    loss: float
    accuracy: float
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Self:
        """Evaluate logits ``[N, classes]`` against class indices ``[N]``, N at least 1."""
        scores, right = logits.detach().float().cpu(), labels.cpu().long()
        loss = float(functional.cross_entropy(scores, right))
        return cls(loss, float((scores.argmax(1) == right).double().mean()), scores.numpy(), right.numpy())

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """The class with the largest logit, int64 ``[N]``."""
        indices: NDArray[np.int64] = self.logits.argmax(1)
        return indices

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """The softmax of the logits, float32 ``[N, classes]``."""
        probabilities: NDArray[np.float32] = torch.from_numpy(self.logits).softmax(1).numpy()
        return probabilities

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """The probability of the predicted class, float32 ``[N]``."""
        confidence: NDArray[np.float32] = self.probabilities.max(1)
        return confidence

    @cached_property
    def confusions(self) -> NDArray[np.int64]:
        """Right class, predicted class and count of each pair that occurs, int64 ``[pairs, 3]``, in this order."""
        pairs, counts = np.unique(np.stack([self.labels, self.predictions], 1), axis=0, return_counts=True)
        return np.column_stack([pairs, counts])

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts, int64 ``[classes, classes]``: rows are the right classes, columns the predicted ones."""
        counts = np.zeros((self.logits.shape[1],) * 2, np.int64)
        right, predicted, times = self.confusions.T
        counts[right, predicted] = times
        return counts

    @cached_property
    def per_class(self) -> ClassScores:
        """Precision, recall, F1 and support of each class."""
        scores = precision_recall_fscore_support(
            self.labels, self.predictions, labels=self._classes, zero_division=np.nan
        )
        return ClassScores(*scores)

    @cached_property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the accuracy, as of N images drawn at random."""
        return wilson_interval(int((self.predictions == self.labels).sum()), len(self.labels))

    def level_accuracies(self, class_names: Sequence[str]) -> tuple[float, ...]:
        """Return the accuracy at each level above the classes, the top first; none where names are no paths.

        At a level the answer is the parent with the largest sum of the probabilities of its classes.

        Args:
            class_names: One name for each class.
        """
        return tuple(
            float((level.sums(self.probabilities.astype(np.float64)).argmax(1) == level.owners[self.labels]).mean())
            for level in levels_of(tuple(class_names))
        )

    def calibration(self, bins: int = 15) -> Calibration:
        """Sort the answers by confidence into ``bins`` of equal width, ``((b - 1) / bins, b / bins]``."""
        return Calibration.of(self.confidence, self.predictions == self.labels, bins)

    def coverage(self, score: str) -> Coverage:
        """Return how accurate the surest answers are.

        Args:
            score: How sure they are: a name of `tnn_runtime.answers.reject.SCORES`.
        """
        return Coverage.of(SCORES[score](self.logits), self.predictions == self.labels)

    @property
    def _classes(self) -> NDArray[np.int64]:
        return np.arange(self.logits.shape[1])


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share, from ``right`` out of ``count`` (at least 1)."""
    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return float(low), float(high)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return how much larger the first of two shares of right answers is, and the ends of its 95% interval.

    The interval is that of Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data". It counts one more image than there is on either side, so that answers that are
    never different do not look certain.

    Args:
        first: Which answers of one classifier are right, bool ``[N]``.
        second: Which answers of another one are right to the same images.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p, q = (only_first + 1) / (len(first) + 2), (only_second + 1) / (len(first) + 2)
    half = float(norm.ppf(0.975)) * ((p + q - (p - q) ** 2) / (len(first) + 2)) ** 0.5
    return (only_first - only_second) / len(first), p - q - half, p - q + half


def best_epoch(history: Sequence[Row]) -> Row:
    """Return the row of ``metrics.jsonl`` with the largest validation accuracy, and of those with the smallest loss."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
