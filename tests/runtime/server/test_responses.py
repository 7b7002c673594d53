"""Answers of the Open Inference Protocol: what is asked for, as JSON or binary data."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import Reject
from tnn_runtime.answers.results import Answers
from tnn_runtime.errors import (
    ArtifactError,
    ClassifierClosed,
    DeadlineExceeded,
    InputError,
    QueueFull,
    TnnError,
    UsageError,
)
from tnn_runtime.server.outputs import OUTPUTS, Answered
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.responses import response_body, tensors, wanted
from tnn_runtime.server.statuses import BadRequest, RequestTooLarge, UnknownModel, UnsupportedBody, status_of

LOGITS = np.array([[0, 2, 1], [5, 0, 0]], np.float32)
EMBEDDING = np.array([[1, 2], [3, 4]], np.float32)
NAMES = ("cat", "Füchsin", "dog")
PLAIN = {name: output for name, output in OUTPUTS.items() if not output.needs}
MISSING = {
    "reject": "no threshold; give --images",
    **dict.fromkeys(("explain", "maps"), "an ensemble; ask its members"),
}
IMAGES = np.zeros((2, 1, 1, 3), np.uint8)


@pytest.fixture
def answers() -> Answers:
    return Answers(Outputs(LOGITS, EMBEDDING), NAMES, Reject("probability", 0.9, 0.5, 10), None)


def test_all_outputs_are_told_in_json(answers: Answers) -> None:
    request = InferRequest(IMAGES, "a\ud800", top_k=2)
    body = response_body("m", "3", request.id, tensors(Answered(answers, [], 2), wanted(request, OUTPUTS), OUTPUTS))
    whole = json.loads(body.content)
    assert body.header_length is None
    assert (whole["model_name"], whole["model_version"], whole["id"]) == ("m", "3", "a\ud800")
    found = {output["name"]: output for output in whole["outputs"]}
    assert {name: output["datatype"] for name, output in found.items()} == {
        name: output.datatype for name, output in OUTPUTS.items() if not output.explains
    }
    assert found["logits"]["data"] == LOGITS.ravel().tolist()
    assert found["embedding"]["shape"] == [2, 2]
    assert found["labels"]["data"] == ["Füchsin", "dog", "cat", "Füchsin"]
    assert found["labels"]["shape"] == found["scores"]["shape"] == [2, 2]
    assert found["probabilities"]["data"] == pytest.approx(answers.scores.ravel(), abs=1e-6)
    assert found["reject"] == {"name": "reject", "datatype": "BOOL", "shape": [2], "data": [True, False]}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("logits", LOGITS.astype("<f4").tobytes()),
        ("embedding", EMBEDDING.astype("<f4").tobytes()),
        ("labels", b"".join(struct.pack("<I", len(name)) + name for name in ("Füchsin".encode(), b"cat"))),
        ("reject", b"\1\0"),
    ],
)
def test_binary_data_follows_the_json(answers: Answers, name: str, raw: bytes) -> None:
    request = InferRequest(IMAGES, outputs=(Wanted(name, True), Wanted("scores"), Wanted("probabilities", True)))
    body = response_body("m", "1", None, tensors(Answered(answers, [], 1), wanted(request, OUTPUTS), OUTPUTS))
    assert body.header_length is not None
    first, second, third = json.loads(body.content[: body.header_length])["outputs"]
    assert first["parameters"] == {"binary_data_size": len(raw)}
    assert "data" not in first
    assert len(second["data"]) == 2
    assert body.content[body.header_length :] == raw + answers.scores.astype("<f4").tobytes()
    assert third["parameters"] == {"binary_data_size": 24}


@pytest.mark.parametrize(("name", "best"), [("logits", "2.000000:1:Füchsin"), ("probabilities", "0.665241:1:Füchsin")])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_classes_come_in_place_of_values(answers: Answers, name: str, best: str, count: int) -> None:
    ((tensor, _),) = tensors(Answered(answers, [], 1), (Wanted(name, class_count=count),), OUTPUTS)
    assert (tensor.datatype, tensor.values.shape) == ("BYTES", (2, min(count, 3)))
    assert tensor.to_json()[0] == best


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Wanted("logit"), "unknown output 'logit'; did you mean 'logits'"),
        (Wanted(""), "unknown output ''; expected some of logits"),
        (Wanted("reject"), "unknown output 'reject': no threshold; give --images; expected some of logits"),
        (Wanted("map"), "unknown output 'map': an ensemble; ask its members; expected"),
        (Wanted("labels", class_count=2), "classification for the output 'labels'; expected it for one of logits"),
        (Wanted("embedding", class_count=1), "classification for the output 'embedding'"),
    ],
)
def test_outputs_that_cannot_be_had_are_refused(output: Wanted, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        wanted(InferRequest(IMAGES, outputs=(output,)), PLAIN, MISSING)


@pytest.mark.parametrize(
    ("error", "http", "grpc"),
    [
        (UnknownModel, 404, "NOT_FOUND"),
        (BadRequest, 400, "INVALID_ARGUMENT"),
        (UsageError, 400, "INVALID_ARGUMENT"),
        (InputError, 400, "INVALID_ARGUMENT"),
        (RequestTooLarge, 413, "RESOURCE_EXHAUSTED"),
        (UnsupportedBody, 415, "INVALID_ARGUMENT"),
        (QueueFull, 503, "UNAVAILABLE"),
        (DeadlineExceeded, 503, "UNAVAILABLE"),
        (ClassifierClosed, 503, "UNAVAILABLE"),
        (ArtifactError, 500, "INTERNAL"),
        (TnnError, 500, "INTERNAL"),
    ],
)
def test_each_error_has_a_status(error: type[TnnError], http: int, grpc: str) -> None:
    assert status_of(error("why")) == (http, grpc)
    assert (http == 503) == error.retryable
