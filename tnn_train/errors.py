"""Errors of training, in the tree of `tnn_runtime.errors`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from tnn_runtime.errors import TnnError, UsageError

__all__ = ["DataError", "Field", "FieldError", "TrainingError"]


class DataError(TnnError):
    """A data set that is missing, empty, or cannot be split."""


class TrainingError(TnnError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class Field:
    """A field of a configuration that an error names.

    Args:
        config: The class of the configuration.
        name: What the field is called in Python.
        prefix: What to put before it where fields of several configurations are named.
    """

    config: type
    name: str
    prefix: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return self.prefix + self.name


class FieldError(UsageError):
    """A configuration that cannot be used.

    Args:
        parts: The message, of text and of the fields that it names.
    """

    def __init__(self, *parts: str | Field) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = parts

    def told(self, name: Callable[[Field], str]) -> str:
        """Return the message with the names that its fields have elsewhere, such as on the command line."""
        return "".join(name(part) if isinstance(part, Field) else part for part in self.parts)
