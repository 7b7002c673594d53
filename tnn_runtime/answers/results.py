"""What a classifier answers: frozen values, made from the outputs of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.density import Density
from tnn_runtime.answers.hierarchy import Level, levels_of
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.ranking import largest, softmax
from tnn_runtime.answers.reject import Reject, check_score, check_threshold

__all__ = ["Answers", "LevelScore", "Prediction", "Predictions", "plain_levels"]


@dataclass(frozen=True)
class Prediction:
    """One class for one image.

    Args:
        label: Name of the class.
        score: Probability, 0 to 1: the softmax of the logits, divided by the temperature of the bundle if it has one.
        index: Position of the class among the logits.
    """

    label: str
    score: float
    index: int


@dataclass(frozen=True)
class LevelScore:
    """What an image is, seen from one height of a hierarchy of classes.

    Args:
        label: Name of the parent, such as ``animal``; of the class at the lowest level, such as ``animal/cat``.
        score: Its probability, 0 to 1: the sum of the scores of the classes below it.
    """

    label: str
    score: float


class Predictions(list[Prediction]):
    """The best classes of one image, best first: a list, which is empty if the image is rejected.

    Args:
        found: The predictions.
        rejected: Whether the caller asked to reject images, and this one is below the threshold of the bundle.
        reject_score: How sure the model is of the image, as `Classifier.reject_scores` returns it; ``None`` if the
            bundle does not say which score to use.
        levels: Where the names of the classes are paths, such as ``animal/cat``: the best parent at the top, the best
            one below it, and so on down to a class. That need not be the best class of all: ``animal`` may be surer
            than ``vehicle`` where no animal is as sure as the car. Else empty, as for a rejected image.
    """

    __slots__ = ("levels", "reject_score", "rejected")

    def __init__(
        self,
        found: Iterable[Prediction] = (),
        rejected: bool = False,
        reject_score: float | None = None,
        levels: Iterable[LevelScore] = (),
    ) -> None:
        super().__init__(found)
        self.levels = tuple(levels)
        self.rejected = rejected
        self.reject_score = reject_score

    def surest(self, score: float) -> LevelScore | None:
        """Return the lowest of the `levels` whose score is at least ``score``; ``None`` if none is.

        With 0.9 that may be ``animal/cat`` for one image, and for another one no more than ``animal``.
        """
        return next((level for level in reversed(self.levels) if level.score >= score), None)

    def __repr__(self) -> str:
        """Show the predictions as a list; those of a rejected image tell its score."""
        if self.rejected:
            return f"<rejected, reject_score={self.reject_score:.4g}>"
        return super().__repr__()


def plain_levels(predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    """Return the entry ``levels`` of an answer in JSON; nothing where there are none."""
    return {"levels": [asdict(level) for level in predictions.levels]} if predictions.levels else {}


class Answers:
    """The outputs for a batch, and what follows from them; computed once for the whole batch, when first asked for.

    Args:
        outputs: What the model gave.
        class_names: One name for each logit.
        rule: Which images may be rejected, if the bundle tells.
        temperature: What logits are divided by for scores; ``None`` for nothing.
        density: Of the embeddings of the training images, if the rule needs it.
    """

    def __init__(
        self,
        outputs: Outputs,
        class_names: Sequence[str],
        rule: Reject | None = None,
        temperature: float | None = None,
        density: Density | None = None,
    ) -> None:
        self.outputs = outputs
        self.logits, self.embedding, self.extra = outputs
        self.class_names = tuple(class_names)
        self._rule = rule
        self._temperature = temperature
        self._density = density
        self._ranked: dict[int, NDArray[np.int64]] = {}

    def only(self, row: int) -> Answers:
        """Return the answers for one image, without the batch that it was in."""
        return Answers(self.outputs.rows([row]), self.class_names, self._rule, self._temperature, self._density)

    def predictions(self, row: int, top_k: int, reject: bool = False) -> Predictions:
        """Return the ``top_k`` best classes of an image, best first; none if images may be rejected and it is."""
        score = None if self._rule is None else float(self.reject_scores[row])
        if reject and self.rejected[row]:
            return Predictions((), True, score)
        scores = self.scores[row]
        best = self.best(top_k)[row].tolist()
        found = [Prediction(self.class_names[index], float(scores[index]), index) for index in best]
        return Predictions(found, False, score, self._levels(row))

    def _levels(self, row: int) -> list[LevelScore]:
        """Return the best parent at the top, the best one below it, and so on down to a class."""
        if not self._hierarchy:
            return []
        found: list[LevelScore] = []
        scores, below = self.scores[row], np.ones(len(self.class_names), dtype=bool)
        for level in self._hierarchy:
            sums = level.sums(np.where(below, scores, 0.0)[None])[0]
            best = max(np.unique(level.owners[below]).tolist(), key=sums.__getitem__)
            below &= level.owners == best
            found.append(LevelScore(level.names[best], float(sums[best])))
        best = max(np.flatnonzero(below).tolist(), key=scores.__getitem__)
        found.append(LevelScore(self.class_names[best], float(scores[best])))
        return list(dict.fromkeys(found))

    @cached_property
    def _hierarchy(self) -> tuple[Level, ...]:
        return levels_of(self.class_names)

    @cached_property
    def reject_scores(self) -> NDArray[np.float32]:
        """How sure the model is of each image, float32 ``[N]``; see `Classifier.reject_scores`."""
        return check_score(self._rule).scores(self.outputs, self._density)

    @cached_property
    def rejected(self) -> NDArray[np.bool_]:
        """Which images are below the threshold of the bundle, bool ``[N]``."""
        return check_threshold(self._rule).rejects(self.reject_scores)

    def best(self, top_k: int) -> NDArray[np.int64]:
        """Return the positions of the ``top_k`` best classes of each image, best first, ``[N, top_k]`` or fewer."""
        if top_k not in self._ranked:
            self._ranked[top_k] = largest(self.logits, top_k)
        return self._ranked[top_k]

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The probability of each class, float64 ``[N, classes]``."""
        return softmax(self.logits, self._temperature)
