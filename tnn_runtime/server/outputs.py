"""The outputs that a request can ask for: what each has, what it needs, and how it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.results import Answers
from tnn_runtime.bundle.manifest import TensorSpec
from tnn_runtime.explain.result import Explanation

__all__ = ["OUTPUTS", "Answered", "Output", "offered"]


class Answered(NamedTuple):
    """What a classifier says of ``N`` images, and of how many classes it is asked for."""

    answers: Answers
    explanations: list[list[Explanation]]
    top_k: int


@dataclass(frozen=True)
class Output:
    """An output.

    Args:
        datatype: As the protocol names it.
        more_axes: How many axes follow that of the images.
        make: Makes its values.
        needs: What of `Classifier.abilities` it needs.
        extra: Whether it is one of `Classifier.extra_outputs`, which come only if they are asked for.
    """

    datatype: str
    more_axes: int
    make: Callable[[Answered], NDArray[Any]]
    needs: frozenset[str] = frozenset()
    extra: bool = False

    @property
    def explains(self) -> bool:
        """Whether it is of explanations, which come only if they are asked for."""
        return "explain" in self.needs


def offered(abilities: frozenset[str], extra: Iterable[TensorSpec] = ()) -> dict[str, Output]:
    """Return the outputs of a classifier by name: those of all classifiers first, then those of its bundle.

    Args:
        abilities: Its `Classifier.abilities`.
        extra: Its `Classifier.extra_outputs`.
    """
    found = {name: output for name, output in OUTPUTS.items() if output.needs <= abilities}
    for spec in extra:
        found.setdefault(spec.name, Output("FP32", len(spec.shape) - 1, _extra(spec.name), extra=True))
    return found


def _extra(name: str) -> Callable[[Answered], NDArray[Any]]:
    return lambda found: found.answers.extra[name]


def _labels(found: Answered) -> NDArray[np.object_]:
    names = [name.encode() for name in found.answers.class_names]
    return np.array([[names[index] for index in row] for row in found.answers.best(found.top_k).tolist()], object)


def _scores(found: Answered) -> NDArray[np.float32]:
    return np.take_along_axis(found.answers.scores, found.answers.best(found.top_k), axis=1).astype(np.float32)


def _explanations(make: Callable[[Explanation], Any], kind: type = np.float32) -> Callable[[Answered], NDArray[Any]]:
    """Return what makes values of the explanation of each class of each image."""
    return lambda found: np.array([[make(one) for one in image] for image in found.explanations], kind)


def _json(explanation: Explanation) -> bytes:
    return json.dumps(dataclasses.replace(explanation, maps=None).to_dict(), ensure_ascii=False).encode()


def _parts(explanation: Explanation) -> list[float]:
    return [part.signed for part in explanation.parts]


def _map(explanation: Explanation) -> NDArray[np.float32]:
    assert explanation.maps is not None
    return explanation.maps.logit


_EXPLAIN = frozenset({"explain"})

OUTPUTS = {
    "logits": Output("FP32", 1, lambda found: found.answers.logits),
    "probabilities": Output("FP32", 1, lambda found: found.answers.scores.astype(np.float32)),
    "embedding": Output("FP32", 1, lambda found: found.answers.embedding),
    "labels": Output("BYTES", 1, _labels),
    "scores": Output("FP32", 1, _scores),
    "reject": Output("BOOL", 0, lambda found: found.answers.rejected, frozenset({"reject"})),
    "explanation": Output("BYTES", 1, _explanations(_json, object), _EXPLAIN),
    "summary": Output("BYTES", 1, _explanations(lambda one: one.summary.encode(), object), _EXPLAIN),
    "parts": Output("FP32", 2, _explanations(_parts), _EXPLAIN),
    "map": Output("FP32", 3, _explanations(_map), _EXPLAIN | {"maps"}),
}
"""All of them: of each image its logits, probabilities and embedding; labels, scores and explanations of its best
classes, whose ``parts`` have their signs, and whose ``map`` is that of the logit; and whether it is rejected."""
