"""Requests of the Open Inference Protocol, from the body of HTTP to images and wishes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.options import shown
from tnn_runtime.server.statuses import BadRequest
from tnn_runtime.server.tensors import bytes_from_json, bytes_from_raw, pixels_from_json, pixels_from_raw

__all__ = [
    "HEADER_LENGTH",
    "INPUTS",
    "Given",
    "Images",
    "InferRequest",
    "Wanted",
    "byte_count",
    "parse_request",
    "read_options",
    "read_request",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON; the others are binary data."""

INPUTS = {"images": "UINT8", "files": "BYTES"}
"""The inputs, one of which a request has, and their datatypes."""

_MOST = 1 << 31
_REQUEST = f"an object with 'inputs'; or one image file as the whole body, with the header {HEADER_LENGTH}: 0"
_TOP_K = 5
_MANY = 256


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for.

    Args:
        name: Its name.
        binary: Whether its values come as binary data.
        class_count: How many of the best classes come in its place, as ``value:index:label``; 0 for the values.
    """

    name: str
    binary: bool = False
    class_count: int = 0


Images: TypeAlias = NDArray[np.uint8] | list[bytes]
"""uint8 ``[n, h, w, c]``, or the content of image files."""


class Given(NamedTuple):
    """The input of a request, checked but for its values.

    Args:
        name: One of `INPUTS`.
        shape: Its shape.
        parameters: Its parameters.
        data: Its values in JSON; ``None`` if they are somewhere else.
    """

    name: str
    shape: list[int]
    parameters: Mapping[str, Any]
    data: Any


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a request holds, checked.

    Args:
        images: uint8 ``[n, h, w, c]``, or the content of image files.
        id: What the answer repeats; ``None`` for nothing.
        outputs: What is asked for; empty for everything.
        binary: Whether outputs come as binary data where nothing is asked for.
        timeout_s: Seconds within which its batch must begin; ``None`` for the limit of the server.
        top_k: How many classes the outputs ``labels`` and ``scores`` have, at most.
    """

    images: Images
    id: str | None = None
    outputs: tuple[Wanted, ...] = ()
    binary: bool = False
    timeout_s: float | None = None
    top_k: int = _TOP_K

    @property
    def is_large(self) -> bool:
        """Whether so many values are asked for that the answer takes its time."""
        return len(self.images) * self.top_k > _MANY


def parse_request(body: bytes, header_length: str | None = None) -> InferRequest:
    """Return what the body of an inference request over HTTP asks for.

    Args:
        body: The whole body, uncompressed.
        header_length: The value of the header `HEADER_LENGTH`; ``None`` if there is none, and the body is JSON. With 0,
            the body is one image file, and the answer is binary.

    Raises:
        BadRequest: If it is not a request of the protocol; the message says what was got and what was expected.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    if header_length is not None and length == 0:
        if not body:
            raise BadRequest("got an empty body; expected the bytes of an image file")
        return InferRequest([body], binary=True)
    return read_request(_json(body[:length], _REQUEST), partial(_images, memoryview(body)[length:]))


def read_request(request: Any, images: Callable[[Given], Images]) -> InferRequest:
    """Return what a request asks for that is an object as JSON has it, but for the values of its input.

    Args:
        request: The request.
        images: Returns the values of the input.

    Raises:
        BadRequest: If it is not a request of the protocol.
    """
    found = _object("the request", request, {"id", "inputs", "outputs", "parameters"})
    parameters = _object("parameters", found.get("parameters", {}), set(_PARAMETERS))
    wishes: dict[str, Any] = {}
    for name, value in parameters.items():
        field, convert = _PARAMETERS[name]
        wishes[field] = convert(name, value)
    request_id = found.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest(f"id is {shown(request_id)}; expected a string")
    binary = wishes.get("binary", False)
    outputs = tuple(_wanted(one, binary) for one in _list("outputs", found.get("outputs", [])))
    _refuse_twice("outputs", [wanted.name for wanted in outputs])
    return InferRequest(images(_given(found)), request_id, outputs, **wishes)


def read_options(body: bytes, known: Iterable[str]) -> Mapping[str, Any]:
    """Return the options in the body of a request that is not for inference: an object of booleans, or nothing.

    Raises:
        BadRequest: If the body is something else.
    """
    if not body.strip():
        return {}
    options = _object("the request", _json(body, "an object, or an empty body"), known)
    return {name: _boolean(name, value) for name, value in options.items()}


def byte_count(text: str) -> int | None:
    """Return how many bytes a header tells; ``None`` if it tells none, or more than there are anywhere."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _header_length(text: str, size: int) -> int:
    length = byte_count(text)
    if length is None or length > size:
        raise BadRequest(
            f"{HEADER_LENGTH} is {shown(text)}; expected how many of the {size} bytes of the body are JSON"
        )
    return length


def _json(text: bytes, expected: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON ({error}); expected {expected}") from None


def _object(where: str, value: Any, known: Iterable[str]) -> Mapping[str, Any]:
    """Return an object that has no names but those that are known."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is {shown(value)}; expected an object")
    known = sorted(known)
    for name in value:
        if name not in known:
            names = f"known are {', '.join(known)}" if known else "expected none"
            raise BadRequest(f"{where}: unknown name {shown(name)}{nearest(name, known)}; {names}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"{where} is {'missing' if value is None else shown(value)}; expected a list")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {shown(value)}; expected true or false")
    return value


def _integer(least: int) -> Callable[[str, Any], int]:
    """Return what makes sure that a parameter is an integer, ``least`` or more."""

    def convert(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value < _MOST:
            raise BadRequest(f"{name} is {shown(value)}; expected an integer of at least {least} and below {_MOST}")
        return value

    return convert


_PARAMETERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "binary_data_output": ("binary", _boolean),
    "timeout": ("timeout_s", lambda name, value: _integer(1)(name, value) / 1e6),
    "top_k": ("top_k", _integer(1)),
}
"""The parameters of a request: for each the field of `InferRequest`, and what checks it. Timeouts are microseconds."""


def _wanted(value: Any, binary: bool) -> Wanted:
    found = _object("an output", value, {"name", "parameters"})
    name = found.get("name")
    if not isinstance(name, str):
        raise BadRequest(f"the name of an output is {shown(name)}; expected a string")
    parameters = _object(
        f"parameters of output {shown(name)}", found.get("parameters", {}), {"binary_data", "classification"}
    )
    return Wanted(
        name,
        _boolean("binary_data", parameters.get("binary_data", binary)),
        _integer(1)("classification", parameters["classification"]) if "classification" in parameters else 0,
    )


def _refuse_twice(where: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadRequest(f"{where} has {shown(name)} more than once; name each once")
        seen.add(name)


def _given(found: Mapping[str, Any]) -> Given:
    """Return the one input that a request has."""
    inputs = _list("inputs", found.get("inputs"))
    if len(inputs) != 1:
        raise BadRequest(f"got {len(inputs)} inputs; expected one: {_expected()}")
    given = _object("an input", inputs[0], {"name", "datatype", "shape", "data", "parameters"})
    name, datatype = given.get("name"), given.get("datatype")
    if not isinstance(name, str) or name not in INPUTS:
        raise BadRequest(f"got the input {shown(name)}; expected {_expected()}")
    if datatype != INPUTS[name]:
        raise BadRequest(f"input {name!r} has the datatype {shown(datatype)}; expected {INPUTS[name]}")
    shape = _shape(name, given.get("shape"))
    parameters = _object(f"parameters of input {name!r}", given.get("parameters", {}), {"binary_data_size"})
    return Given(name, shape, parameters, given.get("data"))


def _images(binary: memoryview, given: Given) -> Images:
    """Return the images of an input over HTTP."""
    name, size = given.name, given.parameters.get("binary_data_size")
    if (size is None) == (given.data is None):
        raise BadRequest(
            f"input {name!r} has {'neither' if size is None else 'both'} of data and binary_data_size; give one"
        )
    expected = 0 if size is None else _integer(0)("binary_data_size", size)
    if expected != len(binary):
        raise BadRequest(
            f"{len(binary)} bytes follow the JSON; its inputs say {expected} (binary_data_size, with the header "
            f"{HEADER_LENGTH})"
        )
    if name == "images":
        return (
            pixels_from_json(name, given.shape, given.data)
            if size is None
            else pixels_from_raw(name, given.shape, binary)
        )
    return bytes_from_json(name, given.shape, given.data) if size is None else bytes_from_raw(name, given.shape, binary)


def _expected() -> str:
    return "'images' (UINT8 [n, h, w, c]) or 'files' (BYTES [n], image files)"


def _shape(name: str, shape: Any) -> list[int]:
    is_list = isinstance(shape, list) and all(type(size) is int and 1 <= size < _MOST for size in shape)
    if is_list and name == "images" and len(shape) == 4 and shape[-1] in (1, 3):
        return list(shape)
    if is_list and name == "files" and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        return list(shape)
    expected = "[n, h, w, c] with 1 or 3 channels" if name == "images" else "[n]"
    raise BadRequest(f"input {name!r} has the shape {shown(shape)}; expected {expected}, each size at least 1")
