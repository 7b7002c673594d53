"""Tensors of the Open Inference Protocol: names, datatypes and shapes, and values as bytes or as JSON."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.options import shown
from tnn_runtime.server.statuses import BadRequest

__all__ = ["Tensor", "bytes_as_given", "bytes_from_json", "bytes_from_raw", "pixels_from_json", "pixels_from_raw"]

_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.bool_): "BOOL", np.dtype(object): "BYTES"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Tensor:
    """An output of a model.

    Args:
        name: Its name.
        values: float32, bool, or ``bytes`` in an array of objects.
    """

    name: str
    values: NDArray[Any]

    @property
    def datatype(self) -> str:
        """The name that the protocol has for the type of the values."""
        return _DATATYPES[self.values.dtype]

    def to_json(self) -> list[Any]:
        """Return the values in one list, in the order of the rows."""
        flat: list[Any] = self.values.ravel().tolist()
        return [value.decode() for value in flat] if self.datatype == "BYTES" else flat

    def to_raw(self) -> bytes:
        """Return the values as bytes: numbers little-endian, BYTES each after their length in 4 bytes."""
        if self.datatype == "BYTES":
            return b"".join(_LENGTH.pack(len(value)) + value for value in self.values.ravel())
        return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()


def pixels_from_raw(name: str, shape: Sequence[int], raw: memoryview) -> NDArray[np.uint8]:
    """Return UINT8 values of a shape from their bytes.

    Raises:
        BadRequest: If there are not as many as the shape says.
    """
    _check_count(name, shape, len(raw), "bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def pixels_from_json(name: str, shape: Sequence[int], data: Any) -> NDArray[np.uint8]:
    """Return UINT8 values of a shape from a list of integers, flat or nested.

    Raises:
        BadRequest: If there are not as many as the shape says, or one is no integer from 0 to 255.
    """
    flat = _flat(name, data)
    _check_count(name, shape, len(flat), "values")
    for value in flat:
        if type(value) is not int or not 0 <= value <= 255:
            raise BadRequest(f"input {name!r} has the value {shown(value)}; expected integers from 0 to 255 (UINT8)")
    return np.array(flat, np.uint8).reshape(shape)


def bytes_from_raw(name: str, shape: Sequence[int], raw: memoryview) -> list[bytes]:
    """Return BYTES elements, each of which comes after its length in 4 bytes, little-endian.

    Raises:
        BadRequest: If lengths and bytes do not fit each other, or the number of elements does not fit the shape.
    """
    elements: list[bytes] = []
    place = 0
    while place < len(raw):
        start = place + _LENGTH.size
        if start > len(raw):
            raise BadRequest(
                f"input {name!r} ends within the length of element {len(elements)}; expected 4 bytes of length before "
                "each element"
            )
        (length,) = _LENGTH.unpack_from(raw, place)
        place = start + length
        if place > len(raw):
            raise BadRequest(
                f"input {name!r} says that element {len(elements)} has {length} bytes; {len(raw) - start} are left"
            )
        elements.append(bytes(raw[start:place]))
    _check_count(name, shape, len(elements), "elements")
    return elements


def bytes_from_json(name: str, shape: Sequence[int], data: Any) -> list[bytes]:
    """Return BYTES elements from a list of strings in base64, flat or nested.

    Raises:
        BadRequest: If one is no string in base64, or the number of strings does not fit the shape.
    """
    flat = _flat(name, data)
    _check_count(name, shape, len(flat), "elements")
    elements: list[bytes] = []
    for value in flat:
        try:
            if not isinstance(value, str):
                raise ValueError
            elements.append(base64.b64decode(value, validate=True))
        except (ValueError, binascii.Error):
            raise BadRequest(
                f"input {name!r} has the element {shown(value)}; expected the bytes of a file in base64, or send them "
                "as binary data"
            ) from None
    return elements


def bytes_as_given(name: str, shape: Sequence[int], data: Sequence[bytes]) -> list[bytes]:
    """Return BYTES elements that came as such.

    Raises:
        BadRequest: If there are not as many as the shape says.
    """
    _check_count(name, shape, len(data), "elements")
    return list(data)


def _flat(name: str, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise BadRequest(f"input {name!r} has the data {shown(data)}; expected a list")
    flat: list[Any] = data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(item, list) for item in flat):
            raise BadRequest(f"input {name!r} has lists and values side by side; expected lists of one depth")
        flat = list(chain.from_iterable(flat))
    return flat


def _check_count(name: str, shape: Sequence[int], count: int, what: str) -> None:
    expected = math.prod(shape)
    if count != expected:
        raise BadRequest(f"input {name!r} has {count} {what}; its shape {list(shape)} has {expected}")
