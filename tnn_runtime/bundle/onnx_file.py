"""What an ONNX file says of its weights and of the files beside it, read without the package ``onnx``.

An ONNX file is a `ModelProto` in the wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding):
fields of a number, a wire type and a value, where a value with its length before it may be a message of fields again.
Only messages that lead to a tensor are looked into; all else is skipped, and not even read.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ArtifactError

__all__ = ["external_files", "large_weights"]

_TENSOR, _ENTRY = "TensorProto", "StringStringEntryProto"
_PARTS: dict[str | int, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
"""The messages that a tensor may lie in: for each, the fields that lead on (``onnx.proto``, IR version 13)."""

_KEY, _VALUE, _LOCATION = 1, 2, b"location"

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_DIMENSIONS, _TYPE, _NAME, _CONTENT = 1, 2, 8, 9
_WEIGHTED = (b"Conv", b"Gemm", b"MatMul")
_DTYPES: dict[int, Any] = {1: np.float32, 10: np.float16}

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP: 0, _GROUP_END: 0}
_LONGEST_TAG, _LONGEST_VARINT = 5, 10
_HEAD = _LONGEST_TAG + _LONGEST_VARINT

_DEEPEST = 100
"""So deep do protocol buffers nest messages, unless they are told otherwise."""
_MOST_FIELDS = 1 << 22
_LONGEST_NAME = 4096


class _Message(NamedTuple):
    """A message that is read: its name in ``onnx.proto``, or of a group, which has none, the number of its field."""

    kind: str | int
    end: int


class _Damaged(ValueError):
    """Bytes that are no model, or more fields than models have."""


def external_files(model: Path, content: bytes | None = None) -> list[str]:
    """Return the names of the files in which an ONNX model keeps tensors (`TensorProto.external_data`), sorted.

    The tensors may be initializers, attributes of nodes, or parts of sparse tensors, in the graph, its subgraphs,
    functions, and the graphs of a training. A name counts whether or not the tensor's `data_location` says that it is
    used.

    Args:
        model: The file. A few bytes of each tensor are read, however large it is.
        content: What is in it, if it has been read already.

    Returns:
        The names as the model has them: paths from its folder on, which may lead anywhere.

    Raises:
        ArtifactError: If it cannot be read, or is not the wire format of a model.
    """
    try:
        with model.open("rb") if content is None else io.BytesIO(content) as file:
            return sorted(_names(file))
    except OSError as error:
        raise ArtifactError(f"{model} cannot be read ({error.strerror}); expected an ONNX model") from error
    except _Damaged as error:
        raise ArtifactError(f"{model} is no ONNX model that can be read ({error}); export or copy it again") from error


def large_weights(model: bytes, smallest: int) -> dict[str, NDArray[Any]]:
    """Return the weights of convolutions and matrix products of a model's graph, by the names of their initializers.

    Those in other files are left out, and those of other types than float32 and float16.

    Args:
        model: The content of the ONNX file, through which `external_files` went without an error.
        smallest: Bytes that a weight must have to be returned.

    Returns:
        Views of the content, which must not be written to.
    """
    used: set[bytes] = set()
    found: dict[bytes, NDArray[Any]] = {}
    for _, graph in _fields(model, _GRAPH):
        for number, content in _fields(graph, _NODE, _INITIALIZER):
            if number == _INITIALIZER:
                tensor = _tensor(content)
                if tensor is not None and tensor[1].nbytes >= smallest:
                    found.update([tensor])
                continue
            node = list(_fields(content, _NODE_INPUT, _NODE_OPERATOR))
            if any(number == _NODE_OPERATOR and bytes(value) in _WEIGHTED for number, value in node):
                used.update(bytes(value) for number, value in node if number == _NODE_INPUT)
    return {name.decode(): array for name, array in found.items() if name in used}


def _tensor(content: memoryview) -> tuple[bytes, NDArray[Any]] | None:
    """Return the name and the values of a `TensorProto`; None if they are elsewhere or of another type."""
    fields = list(_fields(content, _DIMENSIONS, _TYPE, _NAME, _CONTENT))
    values = dict(fields)
    dtype = _DTYPES.get(_varint(bytes(values.get(_TYPE, b"\0")), _LONGEST_VARINT)[0])
    if dtype is None or _CONTENT not in values or _NAME not in values:
        return None
    shape: list[int] = []
    for place in [bytes(value) for number, value in fields if number == _DIMENSIONS]:
        while place:
            size, length = _varint(place, _LONGEST_VARINT)
            shape.append(size)
            place = place[length:]
    array = np.frombuffer(values[_CONTENT], dtype)
    return (bytes(values[_NAME]), array.reshape(shape)) if array.size == math.prod(shape) else None


def _fields(message: bytes | memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields of these numbers of a message, each with the bytes of its value."""
    view, file, place = memoryview(message), io.BytesIO(message), 0
    while place < len(view):
        number, _, start, place = _field(file, place, len(view))
        if number in numbers:
            yield number, view[start:place]


def _names(file: BinaryIO) -> set[str]:
    names: set[str] = set()
    entry: dict[int, tuple[int, int]] = {}
    place, around = 0, [_Message("ModelProto", file.seek(0, os.SEEK_END))]
    for _ in range(_MOST_FIELDS):
        while place == around[-1].end:
            ended = around.pop()
            if isinstance(ended.kind, int):
                raise _Damaged("a group has no end")
            if ended.kind == _ENTRY and _read(file, entry.get(_KEY), len(_LOCATION)) == _LOCATION:
                names.add(_name(file, entry.get(_VALUE, (0, 0))))
            if not around:
                return names
        kind, end = around[-1]
        number, wire, start, stop = _field(file, place, end)
        place = stop
        if wire == _GROUP:
            around.append(_Message(number, end))
        elif wire == _GROUP_END:
            if around.pop().kind != number:
                raise _Damaged("a group ends that did not begin")
        elif wire == _BYTES:
            inner = _PARTS.get(kind, {}).get(number)
            if inner is not None:
                around.append(_Message(inner, stop))
                place, entry = start, {}
            elif kind == _ENTRY:
                entry[number] = start, stop
        if len(around) - 1 > _DEEPEST:
            raise _Damaged(f"more than {_DEEPEST} messages in each other")
    raise _Damaged(f"more than {_MOST_FIELDS} fields")


def _field(file: BinaryIO, place: int, end: int) -> tuple[int, int, int, int]:
    """Return the number and the wire type of the field at a place, and where its value begins and ends."""
    file.seek(place)
    head = file.read(min(_HEAD, end - place))
    tag, length = _varint(head, _LONGEST_TAG)
    number, wire = tag >> 3, tag & 7
    if number == 0 or tag >= 1 << 32:
        raise _Damaged(f"a field with the number {number}")
    start = place + length
    if wire == _VARINT:
        size = _varint(head[length:], _LONGEST_VARINT)[1]
    elif wire == _BYTES:
        size, length = _varint(head[length:], _LONGEST_VARINT)
        start += length
    elif wire in _SIZES:
        size = _SIZES[wire]
    else:
        raise _Damaged(f"a field of the wire type {wire}")
    if start + size > end:
        raise _Damaged(f"a field of {size} bytes where {end - start} are left")
    return number, wire, start, start + size


def _varint(content: bytes, longest: int) -> tuple[int, int]:
    """Return the number that some bytes begin with, and how many bytes it takes."""
    value = 0
    for place, byte in enumerate(content[:longest]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, place + 1
    raise _Damaged("a number that has no end")


def _name(file: BinaryIO, span: tuple[int, int]) -> str:
    name = _read(file, span, _LONGEST_NAME)
    if name is None or b"\0" in name:
        raise _Damaged("a name that no file has")
    return os.fsdecode(name)


def _read(file: BinaryIO, span: tuple[int, int] | None, longest: int) -> bytes | None:
    """Return the bytes from a place to another; None if there are more than the longest."""
    start, stop = span or (0, 0)
    if stop - start > longest:
        return None
    file.seek(start)
    return file.read(stop - start)
