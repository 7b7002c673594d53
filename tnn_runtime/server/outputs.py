"""The outputs that a request can ask for: what each has, what it needs, and how it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.results import Answers
from tnn_runtime.classifier import Classifier
from tnn_runtime.explain.result import Explanation

__all__ = ["OUTPUTS", "Answered", "Output", "offered"]


class Answered(NamedTuple):
    """What a classifier says of ``N`` images, and of how many classes it is asked for."""

    answers: Answers
    explanations: list[list[Explanation]]
    top_k: int


def _always(classifier: Classifier) -> bool:
    return True


@dataclass(frozen=True)
class Output:
    """An output.

    Args:
        datatype: As the protocol names it.
        more_axes: How many axes follow that of the images.
        make: Makes its values.
        is_offered: Whether a classifier has it; every one has if nothing is given.
        explains: Whether it needs explanations, and comes only if it is asked for.
        maps: Whether these need feature maps.
    """

    datatype: str
    more_axes: int
    make: Callable[[Answered], NDArray[Any]]
    is_offered: Callable[[Classifier], bool] = _always
    explains: bool = False
    maps: bool = False


def offered(classifier: Classifier) -> dict[str, Output]:
    """Return the outputs that a classifier has, by name."""
    return {name: output for name, output in OUTPUTS.items() if output.is_offered(classifier)}


def _labels(found: Answered) -> NDArray[np.object_]:
    names = [name.encode() for name in found.answers.class_names]
    return _objects([[names[index] for index in row] for row in found.answers.best(found.top_k).tolist()])


def _scores(found: Answered) -> NDArray[np.float32]:
    return np.take_along_axis(found.answers.scores, found.answers.best(found.top_k), axis=1).astype(np.float32)


def _explanations(make: Callable[[Explanation], Any]) -> Callable[[Answered], NDArray[Any]]:
    """Return what makes one value, or an array, of the explanation of each class of each image."""

    def values(found: Answered) -> NDArray[Any]:
        rows = [[make(explanation) for explanation in image] for image in found.explanations]
        return _objects(rows) if isinstance(rows[0][0], bytes) else np.array(rows, np.float32)

    return values


def _objects(rows: list[list[bytes]]) -> NDArray[np.object_]:
    return np.array(rows, object)


def _json(explanation: Explanation) -> bytes:
    return json.dumps(dataclasses.replace(explanation, maps=None).to_dict(), ensure_ascii=False).encode()


def _parts(explanation: Explanation) -> list[float]:
    return [part.signed for part in explanation.parts]


def _map(explanation: Explanation) -> NDArray[np.float32]:
    assert explanation.maps is not None
    return explanation.maps.logit


def _explained(classifier: Classifier) -> bool:
    return classifier.can_explain


def _mapped(classifier: Classifier) -> bool:
    return classifier.can_explain and classifier.has_maps


OUTPUTS = {
    "logits": Output("FP32", 1, lambda found: found.answers.logits),
    "probabilities": Output("FP32", 1, lambda found: found.answers.scores.astype(np.float32)),
    "embedding": Output("FP32", 1, lambda found: found.answers.embedding),
    "labels": Output("BYTES", 1, _labels),
    "scores": Output("FP32", 1, _scores),
    "reject": Output("BOOL", 0, lambda found: found.answers.rejected, lambda classifier: classifier.can_reject),
    "explanation": Output("BYTES", 1, _explanations(_json), _explained, explains=True),
    "summary": Output("BYTES", 1, _explanations(lambda one: one.summary.encode()), _explained, explains=True),
    "parts": Output("FP32", 2, _explanations(_parts), _explained, explains=True),
    "map": Output("FP32", 3, _explanations(_map), _mapped, explains=True, maps=True),
}
"""All of them: of each image its logits, probabilities and embedding; labels, scores and explanations of its best
classes, whose ``parts`` have their signs, and whose ``map`` is that of the logit; and whether it is rejected."""
