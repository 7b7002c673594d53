"""Command lines made of configurations: each field of a dataclass is an option, whose default a TOML file may set."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from tnn_runtime.bundle.json_values import decode
from tnn_runtime.errors import UsageError
from tnn_train.data import DataConfig
from tnn_train.fields import Field, FieldError, told
from tnn_train.model.config import ModelConfig
from tnn_train.training.recipe import TrainConfig
from tnn_train.training.unused import unused_options

__all__ = ["Configuration", "note_unused", "option", "options_named", "parse"]

_logger = logging.getLogger(__name__)


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


@dataclasses.dataclass(frozen=True)
class _File:
    """A configuration file, which may leave sections out."""

    data: DataConfig | None = None
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


_IN_SHORT_HELP: dict[type, tuple[str, ...]] = {
    DataConfig: ("source", "root", "limit", "download"),
    ModelConfig: ("backbone", "head"),
    TrainConfig: ("epochs", "batch_size", "learning_rate", "augment", "weights", "freeze_backbone", "seed", "device"),
}
"""What a newcomer needs; a command's own options are all shown."""

_INDENT_OF_HELP = 8

T = TypeVar("T", bound=Configuration)


def parse(kind: type[T], program: str, description: str, arguments: Sequence[str]) -> T:
    """Read a command line into a configuration.

    Args:
        kind: `Configuration`, or a subclass with further options; a field ``config`` names the file.
        program: What the command is called.
        description: What its help says first; ``--help`` shows a few options after it, and ``--help-all`` all.
        arguments: The command line.

    Raises:
        UsageError: If an option or the file cannot be used.
        SystemExit: With the code 0, after help was printed.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--config")
    peek.add_argument("-h", "--help", action="store_true")
    peek.add_argument("--help-all", action="store_true")
    try:
        known, _ = peek.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see {program} --help") from error
    file = _File() if known.config is None else _read(Path(known.config))
    fields = {field.name: tyro.MISSING_NONPROP for field in dataclasses.fields(kind) if _is_required(field)}
    fields |= {name: section for name, section in vars(file).items() if section is not None}
    if known.help and not known.help_all:
        description += f"\nthe options that most trainings need; for all of them: {program} --help-all"
        short = _shortened(kind, kind(**fields))
        tyro.cli(short, prog=program, description=description, args=["--help"], config=(FlagCreatePairsOff,))
    arguments = ["--help"] if known.help_all else arguments
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(kind, prog=program, description=description, args=arguments, default=kind(**fields))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_one_line(messages.getvalue())}; see {program} --help") from None


@contextlib.contextmanager
def options_named() -> Iterator[None]:
    """Let errors name the options that the user types, where they come from fields of a configuration."""
    try:
        yield
    except FieldError as error:
        raise UsageError(error.told(option)) from error


def note_unused(options: Configuration, resolved: Sequence[ModelConfig]) -> None:
    """Tell which options do nothing, a note each.

    Args:
        options: What was asked for.
        resolved: Its model with what follows from the data and the recipe, for each head that is trained.
    """
    for sentence in unused_options(options.data, options.model, options.train, resolved):
        _logger.warning("%s", told(sentence, option))


def option(field: Field) -> str:
    """Return the command-line option of a field, such as ``--split-seed``."""
    return _NAMES[field].option


def _in_file(field: Field) -> str:
    """Return the name of a field in a configuration file, such as ``data.seed``."""
    return _NAMES[field].in_file


class _Names(NamedTuple):
    option: str
    in_file: str


def _names(config: Any, options: str = "--", sections: str = "") -> Iterator[tuple[Field, _Names]]:
    """Yield the fields of a configuration and of those in it."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        kind, notes = _split(hint)
        given = next((note.name for note in notes if hasattr(note, "name")), None)
        words = name.replace("_", "-") if given is None else given
        if dataclasses.is_dataclass(kind):
            yield from _names(kind, f"{options}{words}." if words else options, f"{sections}{name}.")
        else:
            yield Field(config, name), _Names(options + words, sections + name)


def _split(hint: Any) -> tuple[Any, list[Any]]:
    """Return the type of a field, and what is noted beside it."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return kind, notes


_NAMES = dict(_names(Configuration))


def _shortened(config: Any, values: Any) -> Any:
    """Return a class to make the short help from: like ``config``, without what newcomers do not need.

    Args:
        config: The class of a configuration.
        values: An instance of it, for the defaults; anything else stands for the defaults of the class.
    """
    fields: list[Any] = []
    for name, hint in get_type_hints(config, include_extras=True).items():
        kind, notes = _split(hint)
        if kind in _IN_SHORT_HELP:
            fields.append((name, Annotated[(_shortened(kind, getattr(values, name)), *notes)]))
        elif name in _IN_SHORT_HELP.get(config, (name,)):
            default = getattr(values if isinstance(values, config) else config, name, dataclasses.MISSING)
            fields.append((name, hint, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(config.__name__, fields, kw_only=True, namespace={"__doc__": config.__doc__})


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            return decode(_File, tomllib.load(file), "configuration")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); expected a TOML file") from error
    except FieldError as error:
        raise UsageError(f"{path} cannot be used ({error.told(_in_file)})") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be used ({error})") from error


def _is_required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _one_line(message: str) -> str:
    """Return what a message of tyro says, without its title, the box around it and the help of the options it names."""
    lines = [line.strip("│╭╮╰╯").rstrip() for line in message.splitlines()]
    _, *lines = [line for line in lines if line.strip("─- ") and len(line) - len(line.lstrip()) < _INDENT_OF_HELP]
    text = " ".join(" ".join(lines).split())
    return text.partition(" For full helptext")[0].rstrip(".")
