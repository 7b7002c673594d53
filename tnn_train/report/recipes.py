"""The recipes of runs in one spelling, so that the same one is the same however it was given."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tnn_train.data import DATASETS, DataConfig
from tnn_train.model.checkpoint import CONFIG_FILE
from tnn_train.model.weights import IMAGENET
from tnn_train.run_files import BEST
from tnn_train.training.recipe import TrainConfig
from tnn_train.training.results import Run

__all__ = ["as_key", "recipes"]

_PATHS: dict[str, Collection[str]] = {
    "data.source": DATASETS,
    "data.groups": (),
    "train.weights": (IMAGENET,),
    "model.tversky.code": ("classes", "hierarchy"),
}
"""Settings that are paths, each with the values that are none."""

_SIZE = "data.image_size"
_MODEL_SIZE = "model.image_size"
"""No option: it follows from the data, and only some models have it."""


def recipes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the settings of each run, where equal recipes are equal.

    An option that was given its default counts as left out. Of a path and another one that ends with it, such as
    ``photos`` and ``/data/photos``, the longer one is taken.
    """
    found = [_without_defaults(run.settings) for run in runs]
    if len({settings.get(_SIZE) is None for settings in found}) > 1:
        for run, settings in zip(runs, found, strict=True):
            settings[_SIZE] = settings.get(_SIZE) or _input_size(run.folder)
    for name, others in _PATHS.items():
        paths = {value for settings in found if (value := settings.get(name)) is not None and value not in others}
        longest = _longest(paths)
        for settings in found:
            if settings.get(name) in longest:
                settings[name] = longest[settings[name]]
    return found


def as_key(value: Any) -> str:
    """Return text that is the same for values that mean the same: 1 and 1.0, but not ``True``."""
    return json.dumps(float(value) if type(value) is int else value, sort_keys=True)


def _without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with ``None`` for values that these options have when they are left out."""
    usual = {
        "train.augment": sorted(
            TrainConfig(freeze_backbone=settings.get("train.freeze_backbone") is True).augmentations
        ),
        "train.head_learning_rate": settings.get("train.learning_rate"),
        "model.tversky.prototype_init": settings.get("model.tversky.init"),
        "data.fit": DataConfig.fit,
    }
    given = {name: sorted(value) if name == "train.augment" and value else value for name, value in settings.items()}
    return given | {name: None for name, value in usual.items() if given.get(name) == value} | {_MODEL_SIZE: None}


def _input_size(folder: Path) -> int | list[int] | None:
    """Return height and width of the model's input in pixels, one number if equal; ``None`` without a checkpoint."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads((folder / BEST / CONFIG_FILE).read_text(encoding="utf-8"))["preprocessing"]
        height, width = int(content["height"]), int(content["width"])
        return height if height == width else [height, width]
    return None


def _longest(paths: Iterable[str]) -> dict[str, str]:
    """Return for each path the longest one that ends with it; itself where two such differ in what comes before."""
    parts = {path: _parts(path) for path in paths}
    longest = {}
    for path, ours in parts.items():
        fitting = [other for other in parts if parts[other][-len(ours) :] == ours]
        best = max(fitting, key=lambda other: (len(parts[other]), other))
        is_one = all(parts[best][-len(parts[other]) :] == parts[other] for other in fitting)
        longest[path] = best if is_one else path
    return longest


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path, without those that lead to where it was given."""
    parts = Path(os.path.normpath(path)).parts
    return tuple(part for part in parts if part != os.pardir) or parts
