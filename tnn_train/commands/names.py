"""The fields of a training's configuration, and what they are called on a command line and in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import Suppress, arg

from tnn_train.data import DataConfig
from tnn_train.fields import Field
from tnn_train.model.config import ModelConfig
from tnn_train.training.recipe import TrainConfig

__all__ = ["NAMES", "Configuration", "Names", "in_file", "option", "split_hint"]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a training is made of; the sections of a configuration file.

    Args:
        data: The images.
        model: Backbone and head.
        train: The recipe.
    """

    data: Annotated[DataConfig, arg(name="")]
    model: Annotated[ModelConfig, arg(name="")] = dataclasses.field(default_factory=ModelConfig)
    train: Annotated[TrainConfig, arg(name="")] = dataclasses.field(default_factory=TrainConfig)


class Names(NamedTuple):
    """What a field is called.

    Args:
        option: On a command line, such as ``--split-seed``.
        in_file: In a configuration file, such as ``data.seed``.
        is_given: Whether a person gives it; the training finds the others.
    """

    option: str
    in_file: str
    is_given: bool


def option(field: Field) -> str:
    """Return the command-line option of a field, such as ``--split-seed``, or ``--parts.no-add-on`` of a flag."""
    given = NAMES[field].option
    if not field.is_off:
        return given
    place = given.rfind(".") + 1 or len("--")
    return f"{given[:place]}no-{given[place:]}"


def in_file(field: Field) -> str:
    """Return the name of a field in a configuration file, such as ``data.seed``."""
    return NAMES[field].in_file


def split_hint(hint: Any) -> tuple[Any, list[Any]]:
    """Return the type of a field, and what is noted beside it."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return kind, notes


def _names(config: Any, options: str = "--", sections: str = "") -> Iterator[tuple[Field, Names]]:
    """Yield the fields of a configuration and of those in it."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        kind, notes = split_hint(hint)
        given = next((note.name for note in notes if hasattr(note, "name")), None)
        words = name.replace("_", "-") if given is None else given
        if dataclasses.is_dataclass(kind):
            yield from _names(kind, f"{options}{words}." if words else options, f"{sections}{name}.")
        else:
            yield Field(config, name), Names(options + words, sections + name, Suppress not in notes)


NAMES = dict(_names(Configuration))
"""The names of every field."""
