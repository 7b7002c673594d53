"""Requests of the Open Inference Protocol: good ones are read, and each bad one gets one clear error."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from tnn_runtime.server.requests import InferRequest, Wanted, parse_request, read_request
from tnn_runtime.server.statuses import BadRequest

PIXELS = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
SHAPE = list(PIXELS.shape)
FILES = [b"\xff\xd8 one", b"", b"\x89PNG two"]


def images(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": PIXELS.ravel().tolist(), **changes}


def body(*inputs: Any, **others: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **others}).encode()


def binary(given: dict[str, Any], raw: bytes, **others: Any) -> tuple[bytes, str]:
    given = {key: value for key, value in given.items() if key != "data"}
    header = body({"parameters": {"binary_data_size": len(raw)}, **given}, **others)
    return header + raw, str(len(header))


def with_lengths(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def files(**changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in FILES]
    return {"name": "files", "datatype": "BYTES", "shape": [len(FILES)], "data": data, **changes}


@pytest.mark.parametrize(
    "request_",
    [
        (body(images()), None),
        (body(images(data=PIXELS.tolist())), None),
        (body(images(data=PIXELS.reshape(4, 6).tolist())), str(len(body(images(data=PIXELS.reshape(4, 6).tolist()))))),
        binary(images(), PIXELS.tobytes()),
    ],
    ids=["flat", "nested", "with a header length", "binary"],
)
def test_pixels_come_as_json_and_as_binary_data(request_: tuple[bytes, str | None]) -> None:
    found = parse_request(*request_).images
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize(
    "request_",
    [
        (body(files()), None),
        (body(files(shape=[3, 1])), None),
        binary(files(), with_lengths(FILES)),
        binary(files(shape=[3, 1]), with_lengths(FILES)),
    ],
    ids=["base64", "base64 with a batch", "binary", "binary with a batch"],
)
def test_files_come_as_json_and_as_binary_data(request_: tuple[bytes, str | None]) -> None:
    assert parse_request(*request_).images == FILES


def test_a_whole_body_is_one_file_if_no_byte_is_json() -> None:
    found = parse_request(b"\xff\xd8 file", "0")
    assert (found.images, found.binary, found.outputs) == ([b"\xff\xd8 file"], True, ())


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, {}),
        ({"id": "a7"}, {"id": "a7"}),
        ({"id": ""}, {"id": ""}),
        ({"parameters": {"timeout": 1_500_000}}, {"timeout_s": 1.5}),
        ({"parameters": {"top_k": 2}}, {"top_k": 2}),
        ({"parameters": {"binary_data_output": True}}, {"binary": True}),
        ({"outputs": [{"name": "logits"}]}, {"outputs": (Wanted("logits"),)}),
        (
            {"outputs": [{"name": "logits"}], "parameters": {"binary_data_output": True}},
            {"outputs": (Wanted("logits", True),), "binary": True},
        ),
        (
            {
                "outputs": [
                    {"name": "logits", "parameters": {"classification": 3}},
                    {"name": "labels", "parameters": {"binary_data": True}},
                ]
            },
            {"outputs": (Wanted("logits", class_count=3), Wanted("labels", True))},
        ),
    ],
)
def test_wishes_are_read(wishes: dict[str, Any], expected: dict[str, Any]) -> None:
    found, plain = parse_request(body(images(), **wishes)), InferRequest(PIXELS)
    for name in ("id", "outputs", "binary", "timeout_s", "top_k"):
        assert getattr(found, name) == expected.get(name, getattr(plain, name))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"inputs": [', "is not valid JSON"),
        (b"\xff\xd8\xff", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"inputs": [NaN]}', "NaN is no number of JSON"),
        (b'{"inputs": [-Infinity]}', "-Infinity is no number of JSON"),
        (b"[]", "the request is \\[\\]; expected an object"),
        (b"{}", "inputs is missing; expected a list"),
        (body(), "got 0 inputs; expected one"),
        (body(images(), files()), "got 2 inputs; expected one"),
        (body(7), "an input is 7; expected an object"),
        (body(images(), output=[]), "unknown name 'output'; did you mean 'outputs'"),
        (body(images(), id=7), "id is 7; expected a string"),
        (body(images(), parameters={"timeout": 0}), "timeout is 0; expected an integer of at least 1"),
        (body(images(), parameters={"timeout": 1.5}), "timeout is 1.5"),
        (body(images(), parameters={"top_k": True}), "top_k is True"),
        (body(images(), parameters={"sequence_id": 3}), "unknown name 'sequence_id'"),
        (body(images(), parameters=[]), "parameters is \\[\\]; expected an object"),
        (body(images(), outputs="logits"), "outputs is 'logits'; expected a list"),
        (body(images(), outputs=[{}]), "the name of an output is None"),
        (body(images(), outputs=[{"name": "logits"}] * 2), "'logits' more than once"),
        (body(images(), outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), "binary_data is 1"),
        (body(images(), outputs=[{"name": "logits", "parameters": {"classification": -1}}]), "classification is -1"),
        (
            body(images(), outputs=[{"name": "logits", "parameters": {"shared_memory_region": "a"}}]),
            "unknown name 'shared_memory_region'",
        ),
    ],
)
def test_what_is_no_request_is_refused(given: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_request(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(name="image"), "got the input 'image'; expected 'images'"),
        (images(name=None), "got the input None"),
        (images(name=["images"]), "got the input \\['images'\\]"),
        (images(datatype="FP32"), "datatype 'FP32'; expected UINT8"),
        (images(datatype=None), "datatype None; expected UINT8"),
        (files(datatype="UINT8"), "datatype 'UINT8'; expected BYTES"),
        (images(shape=[2, 2, 3]), "shape \\[2, 2, 3\\]; expected \\[n, h, w, c\\]"),
        (images(shape=[0, 2, 2, 3]), "each size at least 1"),
        (images(shape=[-1, 2, 2, 3]), "each size at least 1"),
        (images(shape=[2, 2, 2, 4]), "1 or 3 channels"),
        (images(shape=[2.0, 2, 2, 3]), "shape \\[2.0"),
        (images(shape=[True, 2, 2, 3]), "shape \\[True"),
        (images(shape="2223"), "shape '2223'"),
        (images(shape=[1 << 40, 2, 2, 3]), "each size at least 1"),
        (images(shape=[1 << 30, 1 << 30, 1 << 30, 3]), "has 24 values; its shape"),
        (files(shape=[3, 2]), "shape \\[3, 2\\]; expected \\[n\\]"),
        (images(shape=[1, 2, 2, 3]), "has 24 values; its shape \\[1, 2, 2, 3\\] has 12"),
        (files(shape=[2]), "has 3 elements; its shape \\[2\\] has 2"),
        (images(data=[300] * 24), "has the value 300; expected integers from 0 to 255"),
        (images(data=[-1] * 24), "has the value -1"),
        (images(data=[1.5] * 24), "has the value 1.5"),
        (images(data=[True] * 24), "has the value True"),
        (images(data=["7"] * 24), "has the value '7'"),
        (images(data=[None] * 24), "has the value None"),
        (images(data=[[1, 2], 3]), "lists and values side by side"),
        (images(data=[1, [2, 3]]), "has 2 values"),
        (images(data="AAAA"), "has the data 'AAAA'; expected a list"),
        (files(data=["%%", "", ""]), "has the element '%%'; expected the bytes of a file in base64"),
        (files(data=["abc", "", ""]), "has the element 'abc'"),
        (files(data=[1, 2, 3]), "has the element 1"),
        (files(data=["é", "", ""]), "has the element 'é'"),
        (images(parameters={"binary_data_size": 24}), "has both of data and binary_data_size"),
        ({"name": "images", "datatype": "UINT8", "shape": SHAPE}, "has neither of data and binary_data_size"),
        (images(parameters={"shared_memory_region": "a"}), "unknown name 'shared_memory_region'"),
        (images(dtype="UINT8"), "unknown name 'dtype'; did you mean 'datatype'"),
    ],
)
def test_what_is_no_input_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_request(body(given))


@pytest.mark.parametrize("length", ["-5", "abc", "", "1e9", "1000000000", "5.0", " 5", "٣", "9" * 5000])
def test_a_header_length_that_cannot_be_is_refused(length: str) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length is .*; expected how many of the"):
        parse_request(body(images()), length)


RAW = PIXELS.tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((b"", "0"), "got an empty body"),
        (binary(images(shape=[1, 2, 2, 3]), RAW), "has 24 bytes; its shape \\[1, 2, 2, 3\\] has 12"),
        (binary(images(parameters={"binary_data_size": 23}), RAW), "24 bytes follow the JSON; its inputs say 23"),
        (binary(images(parameters={"binary_data_size": 25}), RAW), "24 bytes follow the JSON; its inputs say 25"),
        (binary(images(parameters={"binary_data_size": -24}), RAW), "binary_data_size is -24"),
        (binary(images(parameters={"binary_data_size": "24"}), RAW), "binary_data_size is '24'"),
        ((binary(images(), RAW)[0][: -len(RAW)], None), "0 bytes follow the JSON; its inputs say 24"),
        ((body(images()) + b"more", str(len(body(images())))), "4 bytes follow the JSON; its inputs say 0"),
        (binary(files(), with_lengths(FILES)[:-1]), "says that element 2 has 8 bytes; 7 are left"),
        (binary(files(), with_lengths(FILES) + b"\1\0"), "ends within the length of element 3"),
        (binary(files(), with_lengths(FILES[:2])), "has 2 elements; its shape \\[3\\] has 3"),
        (binary(files(shape=[1]), b"\xff\xff\xff\xffabc"), "says that element 0 has 4294967295 bytes; 3 are left"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(given: tuple[bytes, str | None], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_request(*given)


def test_many_outputs_are_compared_once_each() -> None:
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str(self) == other

    outputs = [{"name": Name(number)} for number in range(1000)]
    given = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 1], "data": [0]}
    read_request({"inputs": [given], "outputs": outputs}, lambda found: [b"x"])
    assert compared < 10_000
    with pytest.raises(BadRequest, match="outputs has '7' more than once"):
        read_request({"inputs": [given], "outputs": [*outputs, outputs[7]]}, lambda found: [b"x"])


@pytest.mark.parametrize("name", ["x" * 5_000_000, "inputs" + "s" * 5_000_000, "\ud800" * 5_000_000])
def test_a_name_of_any_length_is_refused_in_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="unknown name"):
            read_request({name: 1}, lambda found: [b"x"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(name)
