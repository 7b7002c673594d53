"""From plain JSON values to frozen dataclasses, refusing whatever does not fit their annotations."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

__all__ = ["decode"]

T = TypeVar("T")


def decode(kind: type[T], value: Any, where: str) -> T:
    """Build a dataclass from the dictionary that ``dataclasses.asdict`` and JSON made of it.

    A field that is missing has its default, so that a class may grow without losing the files written before.

    Args:
        kind: The dataclass. Its fields may be dataclasses, ``tuple[X, ...]``, ``dict[str, X]``, ``str``, ``int``,
            ``float``, unions of these with ``None``, and ``Any``.
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
        required = {field.name for field in dataclasses.fields(kind) if _has_no_default(field)}
        fits = isinstance(value, dict) and required <= set(value) <= set(hints)
        _expect(fits, where, f"an object with {', '.join(hints)}", value)
        fields = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
        return typing.cast(Any, kind)(**fields)
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _expect(type(value) in (int, float) and abs(value) < _HUGE, where, "a number", value)
        return float(value)
    allowed = arguments or (kind,)
    _expect(type(value) in allowed, where, " or ".join(item.__name__ for item in allowed), value)
    return value


_HUGE = 1e300


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _expect(condition: bool, where: str, expected: str, value: Any) -> None:
    if not condition:
        raise TypeError(f"{where}: expected {expected}, got {str(value)[:60]!r}")
