"""Answers of the Open Inference Protocol: from what a classifier answers to tensors, and to a body of HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import largest
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.options import shown
from tnn_runtime.server.outputs import OUTPUTS, Answered, Output
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.statuses import BadRequest
from tnn_runtime.server.tensors import Tensor

__all__ = ["Body", "response_body", "tensors", "wanted"]


@dataclass(frozen=True)
class Body:
    """A body of HTTP.

    Args:
        content: JSON, and binary data after it.
        header_length: How many bytes are JSON; ``None`` if all are.
    """

    content: bytes
    header_length: int | None


def wanted(
    request: InferRequest, known: Mapping[str, Output], missing: Mapping[str, str] = MappingProxyType({})
) -> tuple[Wanted, ...]:
    """Return the outputs of the answer to a request; if it names none, all but explanations and those of its bundle.

    Args:
        request: The request.
        known: What its model has: `offered` returns it.
        missing: Its `Classifier.missing_abilities`.

    Raises:
        BadRequest: If the model lacks one, or classes are asked for in place of an output that has none.
    """
    for one in request.outputs:
        if one.name not in known:
            needs = OUTPUTS[one.name].needs if one.name in OUTPUTS else ()
            reasons = [f": {missing[need]}" for need in sorted(needs) if need in missing]
            why = reasons[0] if reasons else nearest(one.name, known)
            raise BadRequest(f"unknown output {shown(one.name)}{why}; expected some of {', '.join(known)}")
        if one.class_count and one.name not in _BY_CLASS:
            raise BadRequest(
                f"got classification for the output {one.name!r}; expected it for one of {', '.join(_BY_CLASS)}"
            )
    return request.outputs or tuple(
        Wanted(name, request.binary) for name, output in known.items() if not (output.explains or output.extra)
    )


def tensors(found: Answered, outputs: tuple[Wanted, ...], known: Mapping[str, Output]) -> list[tuple[Tensor, Wanted]]:
    """Return the outputs that are asked for, as `wanted` returns them; ``known`` as there."""
    made = []
    for one in outputs:
        values = known[one.name].make(found)
        if one.class_count:
            values = _classes(values, found.answers.class_names, one.class_count)
        made.append((Tensor(one.name, values), one))
    return made


def response_body(model: str, version: str, request_id: str | None, outputs: list[tuple[Tensor, Wanted]]) -> Body:
    """Return an answer over HTTP; outputs that are asked for as binary data follow the JSON."""
    told, parts = [], []
    for tensor, one in outputs:
        about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)}
        if one.binary:
            parts.append(tensor.to_raw())
            told.append({**about, "parameters": {"binary_data_size": len(parts[-1])}})
        else:
            told.append({**about, "data": tensor.to_json()})
    whole = {"model_name": model, "model_version": version, "outputs": told}
    if request_id is not None:
        whole["id"] = request_id
    header = json.dumps(whole, allow_nan=False).encode()
    return Body(b"".join([header, *parts]), len(header) if parts else None)


def _classes(values: NDArray[np.float32], class_names: Sequence[str], count: int) -> NDArray[np.object_]:
    """Return the largest values of each row as ``value:index:label``."""
    rows = zip(values, largest(values, count).tolist(), strict=True)
    told = [[f"{row[index]:f}:{index}:{class_names[index]}".encode() for index in best] for row, best in rows]
    return np.array(told, object)


_BY_CLASS = ("logits", "probabilities")
