"""Options that do nothing beside the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tnn_train.data import DATASETS, DataConfig
from tnn_train.fields import Field, Part
from tnn_train.heads import HEADS
from tnn_train.model.config import ModelConfig, options_field
from tnn_train.training.recipe import TrainConfig

__all__ = ["unused_options"]

_DOWNLOADED = ("mnist", "fashion-mnist", "cifar10", "cifar100")
_IN_ROOT = (*_DOWNLOADED, "nabirds")


def unused_options(
    data: DataConfig, model: ModelConfig, config: TrainConfig, resolved: Sequence[ModelConfig]
) -> Iterator[tuple[Part, ...]]:
    """Yield a sentence for each option that has another value than its default, and does nothing beside the others.

    Args:
        data: The images.
        model: Backbone and head, as asked for.
        config: The recipe.
        resolved: The same with what follows from the data and the recipe, for each head that is trained.
    """
    yield from _of_data(data)
    if data.normalize == "dataset" and config.weights is None:
        yield from _given(data, ["normalize"], (" without ", Field(TrainConfig, "weights")))
    yield from _of_recipe(config)
    yield from _of_heads(model, config, resolved)


def _of_data(config: DataConfig) -> Iterator[tuple[Part, ...]]:
    source = (" with ", Field(DataConfig, "source"), f" {config.source}")
    if config.source not in _IN_ROOT:
        yield from _given(config, ["root"], source)
    if config.source in DATASETS:
        yield from _given(config, ["nested_classes"], source)
    if config.source not in _DOWNLOADED:
        yield from _given(config, ["download"], source)


def _of_recipe(config: TrainConfig) -> Iterator[tuple[Part, ...]]:
    frozen = Field(TrainConfig, "freeze_backbone")
    schedule, epochs = _value(config, "schedule"), _value(config, "epochs")
    if config.schedule not in ("step", "plateau"):
        yield from _given(config, ["decay_epochs", "decay_factor"], (" with ", *schedule))
    elif _first_fall(config) >= config.epochs:
        yield (*schedule, " does nothing with ", *epochs, " and ", *_value(config, "decay_epochs"))
    if config.optimizer != "sgd":
        yield from _given(config, ["momentum"], (" with ", *_value(config, "optimizer")))
    if config.patience is not None and config.patience >= config.epochs:
        yield from _given(config, ["patience"], (" with ", *epochs))
    if not config.freeze_backbone:
        yield from _given(config, ["embedding_cache"], (" without ", frozen))
        return
    yield from _given(config, ["precision"], (" with ", frozen, ": embeddings and head are computed in float32"))
    if config.head_learning_rate is not None:
        head_rate = Field(TrainConfig, "head_learning_rate")
        yield from _given(config, ["learning_rate"], (" with ", frozen, " and ", head_rate))


def _of_heads(model: ModelConfig, config: TrainConfig, resolved: Sequence[ModelConfig]) -> Iterator[tuple[Part, ...]]:
    trained = {one.head: one.options for one in resolved}
    for family, head in HEADS.items():
        options = getattr(model, options_field(family), None)
        if options is None:
            continue
        if family not in trained:
            names = [field.name for field in dataclasses.fields(options)]
            yield from _given(options, names, (" with ", Field(ModelConfig, "head"), f" {', '.join(trained)}"))
        elif not config.keep_head:
            for name, reason in head.unused(options, trained[family]):
                yield from _given(options, [name], _beside(trained[family], reason))


def _first_fall(config: TrainConfig) -> float:
    """Return the epochs after which the rate can fall for the first time."""
    if config.schedule == "step":
        return config.warmup_epochs + config.decay_epochs
    # One epoch sets the loss that others, one more than are waited for, do not improve.
    return max(1, math.ceil(config.warmup_epochs)) + config.decay_epochs + 1


def _given(config: Any, names: Sequence[str], why: tuple[Part, ...]) -> Iterator[tuple[Part, ...]]:
    """Yield a sentence for each of the fields that has another value than its default."""
    for name in names:
        value = getattr(config, name)
        if value != getattr(type(config), name):
            yield Field(type(config), name, is_off=value is False), " does nothing", *why


def _beside(config: Any, name: str) -> tuple[Part, ...]:
    """Return ``with`` or ``without`` and a field, as a person gives it or leaves it out."""
    value = getattr(config, name)
    is_given = value is not None and (value is not False or getattr(type(config), name))
    if is_given and not isinstance(value, bool):
        return " with ", *_value(config, name)
    return " with " if is_given else " without ", Field(type(config), name, is_off=is_given and not value)


def _value(config: Any, name: str) -> tuple[Part, ...]:
    return Field(type(config), name), f" {getattr(config, name)}"
