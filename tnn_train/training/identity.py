"""What a resumed training must share with the interrupted one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from tnn_train.data import DataConfig, ImageData
from tnn_train.fields import Field, FieldError
from tnn_train.model.config import ModelConfig
from tnn_train.training.recipe import INCIDENTAL, TrainConfig

__all__ = ["INCIDENTAL_DATA", "identity", "refuse_other"]

INCIDENTAL_DATA = ("root", "download", "skip_unusable")
"""What of the data's options does not say which images they are: data may be moved."""


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yield the fields of a configuration and of those in it, by their names in an identity."""
    for name, kind in get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", Field(config, name, prefix)


_FIELDS = {**dict(_fields(TrainConfig)), **dict(_fields(DataConfig, "data.")), **dict(_fields(ModelConfig, "model."))}
_OF_PREPROCESSING = {name: Field(DataConfig, name, "data.") for name in ("fit", "background", "mean", "std")}
"""Options of the data that the preprocessing has as well, where they stand for what follows from the weights, too."""
_FIELDS |= {f"preprocessing.{name}": field for name, field in _OF_PREPROCESSING.items()}


def identity(data: ImageData, model: ModelConfig, config: TrainConfig) -> str:
    """Return all that decides what comes out of a training, as JSON."""
    recipe = dataclasses.asdict(config)
    for name in INCIDENTAL:
        del recipe[name]
    labels = hashlib.sha256(data.train.labels.tobytes() + data.val.labels.tobytes()).hexdigest()
    left_out = (*INCIDENTAL_DATA, "normalize", *_OF_PREPROCESSING)
    options = {name: value for name, value in dataclasses.asdict(data.config).items() if name not in left_out}
    names = {name: Path(path).name for name in ("source", "groups") if (path := options[name]) is not None}
    images = {
        "data": {**options, **names},
        "images": len(data.train),
        "labels": labels,
        "classes": data.class_names,
        "preprocessing": dataclasses.asdict(data.preprocessing),
    }
    return json.dumps({**recipe, **images, "model": dataclasses.asdict(model)}, sort_keys=True)


def refuse_other(ours: str, theirs: str, name: str) -> None:
    """Make sure that two identities are the same.

    Args:
        ours: That of the training that is to go on.
        theirs: The saved one.
        name: Where it was saved.

    Raises:
        FieldError: If they are not; the message lists what differs.
    """
    if changed := list(_differences(json.loads(ours), json.loads(theirs))):
        listed = [part for difference in changed for part in ("; ", *difference)]
        raise FieldError(f"{name} belongs to another training (", *listed[1:], "); repeat its options to resume it")


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str | Field, ...]]:
    """Yield each difference, as parts of a message."""
    for key in sorted({*ours, *theirs}):
        named = _FIELDS.get(f"{prefix}{key}", f"{prefix}{key}")
        one = ours.get(key)
        other = theirs.get(key, {} if isinstance(one, dict) else _default(named))
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield ("other labels",) if key == "labels" else (named, f": was {other}, now {one}")


def _default(named: str | Field) -> Any:
    """Return the value of an option in a run of a version that had no such option, as JSON has it.

    That is its default, or what its ``metadata`` has as ``earlier``.
    """
    if not isinstance(named, Field):
        return None
    kept = next(field for field in dataclasses.fields(named.config) if field.name == named.name)
    value = kept.metadata.get("earlier", None if kept.default is dataclasses.MISSING else kept.default)
    return list(value) if isinstance(value, tuple) else value
