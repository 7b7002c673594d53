"""What an ONNX file says of the files beside it, read without the package ``onnx``, which the runtime does not need.

An ONNX file is a `ModelProto` in the wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding):
fields of a number, a wire type and a value, where a value with its length before it may be a message of fields again.
Only messages that lead to a tensor are looked into; all else is skipped, and not even read.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tnn_runtime.errors import ArtifactError

__all__ = ["external_files"]

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
