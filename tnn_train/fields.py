"""Fields of configurations: how their values are checked, and how errors name them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from tnn_runtime.errors import UsageError
from tnn_runtime.text import why_not_utf8

__all__ = ["SMALLEST", "Field", "FieldError", "Part", "at_least", "check_utf8", "choose", "one_of", "repeated", "told"]

T = TypeVar("T")

SMALLEST = 1e-30
"""Numbers below are 0 in float32, or in a product of two of them."""

_LARGEST = 1e4
"""Numbers above leave nothing of what they are added to, or stand beside as a weight."""


@dataclass(frozen=True)
class Field:
    """A field of a configuration that an error names.

    Args:
        config: The class of the configuration.
        name: What the field is called in Python.
        prefix: What to put before it where fields of several configurations are named.
        is_off: Whether the error speaks of the field as a flag that was turned off.
    """

    config: type
    name: str
    prefix: str = dataclasses.field(default="", compare=False)
    is_off: bool = dataclasses.field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.prefix}{self.name}{'=False' if self.is_off else ''}"


Part: TypeAlias = str | Field
"""A part of a message: text, or a field that it names."""


def told(parts: Iterable[Part], name: Callable[[Field], str]) -> str:
    """Return a message with the names that its fields have elsewhere, such as on the command line."""
    return "".join(name(part) if isinstance(part, Field) else part for part in parts)


class FieldError(UsageError):
    """A configuration that cannot be used.

    Args:
        parts: The message, of text and of the fields that it names.
    """

    def __init__(self, *parts: Part) -> None:
        super().__init__(told(parts, str))
        self.parts = parts

    def told(self, name: Callable[[Field], str]) -> str:
        """Return the message with the names that its fields have elsewhere, such as on the command line."""
        return told(self.parts, name)


def choose(what: str | Field, value: T, choices: Iterable[T]) -> T:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UsageError: With the choices, if it is not.
    """
    choices = list(choices)
    if value not in choices:
        raise FieldError("unknown ", what, f" {value!r}; choose from {', '.join(map(str, choices))}")
    return value


def one_of(config: Any, name: str, choices: Iterable[Any]) -> None:
    """Refuse a field that is none of ``choices``.

    Raises:
        FieldError: With the name, the value and the choices.
    """
    choose(Field(type(config), name), getattr(config, name), choices)


def at_least(config: Any, lowest: float, *names: str, most: float | None = None) -> None:
    """Refuse fields below ``lowest``, which are to be integers where it is one, and above ``most``.

    By default integers have no upper bound, and other numbers one that only a mistake exceeds.

    Raises:
        FieldError: With the name and the value of the first of them.
    """
    is_whole = isinstance(lowest, int)
    most = (math.inf if is_whole else _LARGEST) if most is None else most
    for name in names:
        value = getattr(config, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int if is_whole else int | float)
            or not lowest <= value <= most
        ):
            kind = "an integer" if is_whole else "a finite number"
            is_large = isinstance(value, int | float) and most < value < math.inf
            expected = f"{kind} of at most {most:g}" if is_large else f"{kind} of at least {lowest}"
            raise FieldError(Field(type(config), name), f" is {value!r}; expected {expected}")


def check_utf8(config: Any, *names: str) -> None:
    """Refuse fields whose text is not UTF-8.

    Raises:
        FieldError: With the name and the value of the first of them.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str) and (why := why_not_utf8(value)):
            raise FieldError(Field(type(config), name), f": {why}")


def repeated(values: Iterable[T]) -> T | None:
    """Return the first value that is there more than once; ``None`` if there is none."""
    return next((value for value, count in Counter(values).items() if count > 1), None)
