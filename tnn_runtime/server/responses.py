"""Answers of the Open Inference Protocol: from what a classifier answers to tensors, and to a body of HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import largest
from tnn_runtime.answers.results import Answers
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.options import shown
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.statuses import BadRequest
from tnn_runtime.server.tensors import Tensor

__all__ = ["Body", "output_names", "response_body", "tensors", "wanted"]


@dataclass(frozen=True)
class Body:
    """A body of HTTP.

    Args:
        content: JSON, and binary data after it.
        header_length: How many bytes are JSON; ``None`` if all are.
    """

    content: bytes
    header_length: int | None


def output_names(can_reject: bool) -> dict[str, str]:
    """Return the outputs of a model with their datatypes; ``can_reject`` is whether it has a threshold to reject by."""
    return {name: datatype for name, (datatype, _) in _OUTPUTS.items() if can_reject or name != "reject"}


def wanted(request: InferRequest, can_reject: bool) -> tuple[Wanted, ...]:
    """Return the outputs of the answer to a request.

    Raises:
        BadRequest: If one is unknown, or classes are asked for in place of an output that has none.
    """
    known = output_names(can_reject)
    for one in request.outputs:
        if one.name not in known:
            raise BadRequest(
                f"unknown output {shown(one.name)}{nearest(one.name, known)}; expected some of {', '.join(known)}"
            )
        if one.class_count and one.name not in _BY_CLASS:
            raise BadRequest(
                f"got classification for the output {one.name!r}; expected it for one of {', '.join(_BY_CLASS)}"
            )
    return request.outputs or tuple(Wanted(name, request.binary) for name in known)


def tensors(answers: Answers, outputs: tuple[Wanted, ...], top_k: int) -> list[Tensor]:
    """Return the outputs that are asked for.

    Args:
        answers: What a classifier answers, of ``N`` images.
        outputs: What is asked for, as `wanted` returns it.
        top_k: How many classes ``labels`` and ``scores`` have, at most.
    """
    found = []
    for one in outputs:
        _, make = _OUTPUTS[one.name]
        values = make(answers, top_k)
        classes = one.class_count
        found.append(Tensor(one.name, _classes(values, answers.class_names, classes) if classes else values))
    return found


def response_body(
    model: str, version: str, request: InferRequest, found: list[Tensor], outputs: tuple[Wanted, ...]
) -> Body:
    """Return the answer to a request over HTTP; outputs that are asked for as binary data follow the JSON."""
    told, parts = [], []
    for tensor, one in zip(found, outputs, strict=True):
        about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)}
        if one.binary:
            parts.append(tensor.to_raw())
            told.append({**about, "parameters": {"binary_data_size": len(parts[-1])}})
        else:
            told.append({**about, "data": tensor.to_json()})
    whole = {"model_name": model, "model_version": version, "outputs": told}
    if request.id is not None:
        whole["id"] = request.id
    header = json.dumps(whole, allow_nan=False).encode()
    return Body(b"".join([header, *parts]), len(header) if parts else None)


def _labels(answers: Answers, top_k: int) -> NDArray[np.object_]:
    rows = answers.best(top_k).tolist()
    return np.array([[answers.class_names[index].encode() for index in row] for row in rows], object)


def _scores(answers: Answers, top_k: int) -> NDArray[np.float32]:
    return np.take_along_axis(answers.scores, answers.best(top_k), axis=1).astype(np.float32)


def _classes(values: NDArray[np.float32], class_names: Sequence[str], count: int) -> NDArray[np.object_]:
    """Return the largest values of each row as ``value:index:label``."""
    rows = zip(values, largest(values, count).tolist(), strict=True)
    told = [[f"{row[index]:f}:{index}:{class_names[index]}".encode() for index in best] for row, best in rows]
    return np.array(told, object)


_OUTPUTS: dict[str, tuple[str, Callable[[Answers, int], NDArray[Any]]]] = {
    "logits": ("FP32", lambda answers, top_k: answers.logits),
    "probabilities": ("FP32", lambda answers, top_k: answers.scores.astype(np.float32)),
    "embedding": ("FP32", lambda answers, top_k: answers.embedding),
    "labels": ("BYTES", _labels),
    "scores": ("FP32", _scores),
    "reject": ("BOOL", lambda answers, top_k: answers.rejected),
}
"""The outputs: for each its datatype, and what makes it of the answers and of how many best classes are wanted."""

_BY_CLASS = ("logits", "probabilities")
