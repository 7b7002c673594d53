"""From plain JSON values to frozen dataclasses, refusing whatever does not fit their annotations."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable
from types import NoneType
from typing import Any, TypeVar

__all__ = ["decode", "nearest"]

T = TypeVar("T")


def decode(kind: type[T], value: Any, where: str) -> T:
    """Build a dataclass from the dictionary that ``dataclasses.asdict`` and JSON made of it.

    A field that is missing has its default, so that a class may grow without losing the files written before. Where
    such files mean something else than the default, the metadata of the field has it as ``absent``.

    Args:
        kind: The dataclass. Its fields may be dataclasses, ``tuple[X, ...]``, ``dict[str, X]``, ``str``, ``int``,
            ``float``, ``bool``, a union of one of these, and of a tuple, with ``None``, and ``Any``.
        value: What was read.
        where: What to call it in an error.

    Raises:
        TypeError: If a field without a default is missing, or one is unknown or of another type; the message names it.
    """
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        _expect(isinstance(value, dict), where, f"an object with {', '.join(hints)}", value)
        for name in value:
            if name not in hints:
                raise TypeError(
                    f"{where}: unknown name {name[:60]!r}{nearest(name, hints)}; known are {', '.join(hints)}"
                )
        for field in dataclasses.fields(kind):
            _expect(field.name in value or not _has_no_default(field), where, f"a value for {field.name}", value)
        fields = {
            field.name: field.metadata["absent"] for field in dataclasses.fields(kind) if "absent" in field.metadata
        }
        fields |= {name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
        return typing.cast(Any, kind)(**fields)
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{_printable(key)}") for key, item in value.items()}
    if kind is float:
        _expect(type(value) in (int, float) and abs(value) < _HUGE, where, "a number", value)
        return float(value)
    if NoneType in arguments:
        if value is None:
            return None
        others = [item for item in arguments if item is not NoneType]
        lists = [item for item in others if typing.get_origin(item) is tuple]
        return _decode((lists if lists and isinstance(value, list) else others)[0], value, where)
    _expect(type(value) is kind, where, kind.__name__, value)
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the known name that is most like ``name``, or nothing if none is."""
    close = difflib.get_close_matches(str(name)[:_LONGEST], [str(item) for item in known], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


_HUGE = 1e300
_LONGEST = 100


def _printable(text: str) -> str:
    return text[:60] if text.isprintable() else repr(text[:60])


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _expect(condition: bool, where: str, expected: str, value: Any) -> None:
    if not condition:
        raise TypeError(f"{where}: expected {expected}, got {str(value)[:60]!r}")
