"""Command lines made of configurations: each field of a dataclass is an option, whose default a TOML file may set."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff

from tnn_runtime.console import refuse_not_utf8
from tnn_runtime.errors import UsageError
from tnn_train.commands.config_file import ConfigFile, read_config_file
from tnn_train.commands.names import Configuration, option, split_hint
from tnn_train.data import DataConfig
from tnn_train.fields import Field, FieldError, told
from tnn_train.model.config import ModelConfig
from tnn_train.training.recipe import TrainConfig
from tnn_train.training.unused import unused_options

__all__ = ["Configuration", "note_unused", "option", "options_named", "parse"]

_logger = logging.getLogger(__name__)

_IN_SHORT_HELP: dict[type, tuple[str, ...]] = {
    DataConfig: ("source", "root", "limit", "download"),
    ModelConfig: ("backbone", "head"),
    TrainConfig: ("epochs", "batch_size", "learning_rate", "augment", "weights", "freeze_backbone", "seed", "device"),
}
"""What a newcomer needs; a command's own options are all shown."""

_UNRECOGNIZED = "Unrecognized options: "
_INDENT_OF_HELP = 8

T = TypeVar("T", bound=Configuration)


def parse(
    kind: type[T],
    program: str,
    description: str,
    arguments: Sequence[str],
    without: Mapping[Field, str] = MappingProxyType({}),
) -> T:
    """Read a command line into a configuration.

    Args:
        kind: `Configuration`, or a subclass with further options; a field ``config`` names the file.
        program: What the command is called.
        description: What its help says first; ``--help`` shows a few options after it, and ``--help-all`` all.
        arguments: The command line.
        without: Fields that are no options of this command, each with the reason; in a file they get a note.

    Raises:
        UsageError: If an option or the file cannot be used.
        SystemExit: With the code 0, after help was printed.
    """
    refuse_not_utf8(arguments)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--config")
    peek.add_argument("-h", "--help", action="store_true")
    peek.add_argument("--help-all", action="store_true")
    try:
        known, _ = peek.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see {program} --help") from error
    for unused, reason in without.items():
        if any(word.partition("=")[0] == option(unused) for word in arguments):
            raise UsageError(f"{option(unused)} is no option of {program}: {reason}; see {program} --help")
    file = ConfigFile() if known.config is None else read_config_file(Path(known.config), without)
    fields = {field.name: tyro.MISSING_NONPROP for field in dataclasses.fields(kind) if _is_required(field)}
    fields |= {name: section for name, section in vars(file).items() if section is not None}
    defaults = kind(**fields)
    if known.help and not known.help_all:
        description += f"\nthe options that most trainings need; for all of them: {program} --help-all"
        short = _narrowed(kind, defaults, _IN_SHORT_HELP, without)
        tyro.cli(short, prog=program, description=description, args=["--help"], config=(FlagCreatePairsOff,))
    arguments = ["--help"] if known.help_all else arguments
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            if not without:
                return tyro.cli(kind, prog=program, description=description, args=arguments, default=defaults)
            narrow = _narrowed(kind, defaults, {unused.config: None for unused in without}, without)
            return _widened(defaults, tyro.cli(narrow, prog=program, description=description, args=arguments))
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


def note_unused(options: Configuration, resolved: Sequence[ModelConfig], name: Callable[[Field], str] = option) -> None:
    """Tell which options do nothing, a note each.

    Args:
        options: What was asked for.
        resolved: Its model with what follows from the data and the recipe, for each head that is trained.
        name: What fields are called on this command line.
    """
    for sentence in unused_options(options.data, options.model, options.train, resolved):
        _logger.warning("%s", told(sentence, name))


def _narrowed(
    config: Any, values: Any, sections: Mapping[type, Sequence[str] | None], without: Collection[Field] = ()
) -> Any:
    """Return a class like that of a configuration, which has fewer options.

    Args:
        config: The class of the configuration.
        values: An instance of it, for the defaults; anything else stands for the defaults of the class.
        sections: Configurations in it that are narrowed, each with the fields that stay; ``None`` for all.
        without: Fields that do not stay anyway.
    """
    fields: list[Any] = []
    names = sections.get(config)
    for name, hint in get_type_hints(config, include_extras=True).items():
        kind, notes = split_hint(hint)
        if kind in sections:
            narrow = _narrowed(kind, getattr(values, name), sections, without)
            fields.append((name, Annotated[(narrow, *notes)]))
        elif (names is None or name in names) and Field(config, name) not in without:
            default = getattr(values if isinstance(values, config) else config, name, dataclasses.MISSING)
            fields.append((name, hint, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(config.__name__, fields, kw_only=True, namespace={"__doc__": config.__doc__})


def _widened(values: T, narrow: Any) -> T:
    """Return a configuration with the options that were read for a narrower class of it."""
    given = {}
    for name, value in vars(narrow).items():
        whole = getattr(values, name)
        is_narrow = dataclasses.is_dataclass(whole) and not isinstance(value, type(whole))
        given[name] = dataclasses.replace(whole, **vars(value)) if is_narrow else value
    return dataclasses.replace(values, **given)


def _is_required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _one_line(message: str) -> str:
    """Return what a message of tyro says, without its title, the box around it and the help of the options it names."""
    lines = [line.strip("│╭╮╰╯").rstrip() for line in message.splitlines()]
    _, *lines = [line for line in lines if line.strip("─- ") and len(line) - len(line.lstrip()) < _INDENT_OF_HELP]
    text = " ".join(" ".join(lines).split())
    text = text.partition(" For full helptext")[0].rstrip(".")
    stray = text.removeprefix(_UNRECOGNIZED)
    if stray != text and not stray.startswith("-"):
        return f"{stray!r} belongs to no option; the option before it takes fewer values"
    return text
