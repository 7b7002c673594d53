"""Configuration files: TOML with the names of options, or with those of the fields behind them."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.json_values import decode, nearest
from tnn_runtime.errors import UsageError
from tnn_train.commands.names import NAMES, in_file
from tnn_train.data import DataConfig
from tnn_train.fields import Field, FieldError
from tnn_train.model.config import ModelConfig
from tnn_train.text_files import read_text
from tnn_train.training.recipe import TrainConfig

__all__ = ["ConfigFile", "read_config_file"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfigFile:
    """The content of a configuration file, which may leave sections out."""

    data: DataConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def read_config_file(path: Path, without: Mapping[Field, str] | None = None) -> ConfigFile:
    """Read a configuration file.

    Args:
        path: A TOML file.
        without: Fields that the command has no use for, each with the reason; a note has it where the file gives one.

    Raises:
        UsageError: If the file cannot be read, has unknown names, or values that cannot be used.
    """
    text = read_text(path, "a TOML file")
    try:
        content = _by_fields(tomllib.loads(text))
        for unused, reason in (without or {}).items():
            section, _, name = in_file(unused).rpartition(".")
            if isinstance(content.get(section), dict) and name in content[section]:
                del content[section][name]
                _logger.warning("%s of %s is not used: %s", in_file(unused), path, reason)
        return decode(ConfigFile, content, "configuration")
    except FieldError as error:
        raise UsageError(f"{path} cannot be used ({error.told(in_file)})") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be used ({error})") from error


def _as_option(given: Field) -> str:
    """Return a field's place in a file, by the name of its option: ``data.split_seed``."""
    section, _, _ = in_file(given).rpartition(".")
    return f"{section}.{NAMES[given].option.lstrip('-').rpartition('.')[2].replace('-', '_')}"


_FIELDS = {in_file(given): given for given in NAMES} | {_as_option(given): given for given in NAMES}
_SECTIONS = dict.fromkeys(place.rpartition(".")[0] for place in _FIELDS)


def _by_fields(table: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return a table with the names of fields alone.

    Args:
        table: What was read.
        section: The name of the table in the file; empty for the whole file.

    Raises:
        TypeError: If a name is unknown, is not for a person to give, or stands for the same field as another one.
    """
    found: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in table.items():
        place = f"{section}.{key}".lstrip(".").replace("-", "_")
        if place in _SECTIONS:
            name, value = key, _by_fields(value, place) if isinstance(value, dict) else value
        elif place in _FIELDS:
            name = _FIELDS[place].name
            if not NAMES[_FIELDS[place]].is_given:
                raise TypeError(f"{place} follows from the images and the training; leave it out")
        else:
            raise TypeError(_unknown(key, section))
        if name in found:
            raise TypeError(f"{section}: {keys[name]!r} and {key!r} are names of one option; give one of them")
        found[name], keys[name] = value, key
    return found


def _unknown(key: str, section: str) -> str:
    """Say that a name is unknown, and which one may be meant."""
    places = [*(place for place, given in _FIELDS.items() if NAMES[given].is_given), *_SECTIONS]
    names = [name for home, _, name in (place.rpartition(".") for place in places) if home == section]
    elsewhere = [place for place in places if place.rpartition(".")[2] == key.replace("-", "_")]
    hint = f"; did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else nearest(key, names)
    return f"{section or 'configuration'}: unknown name {key[:60]!r}{hint}; known are {', '.join(names)}"
