"""How a training of a Tversky head starts: as a linear layer, at class means, or at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tnn_train.fields import Field, FieldError
from tnn_train.heads.tversky.attributes import class_attributes, completed, num_of_hierarchy, read_attributes
from tnn_train.heads.tversky.config import AUTO, CLASS_MEANS, IMAGE, LINEAR, RANDOM, TverskyConfig
from tnn_train.heads.tversky.unfolding import FIXED, FORM

__all__ = ["resolve_start", "unused"]

_ATTRIBUTES = ("classes", "hierarchy")
_UNUSED = ("num_features", "init", "prototype_init", "prototype_gain", "sharpness", "logit_scale")
"""What a linear start has no use for."""

_UNUSED_WITH_IMAGES = ("init", "prototype_init", "prototype_gain")


def resolve_start(config: TverskyConfig, class_names: Sequence[str], *, is_frozen: bool) -> TverskyConfig:
    """Return the configuration of a training with its start decided, and with the form that follows from it.

    Args:
        config: What was asked for.
        class_names: The classes.
        is_frozen: Whether the head alone is trained.

    Raises:
        FieldError: If the start and other options contradict each other.
        UsageError: If a table of attributes cannot be used.
    """
    start = config.start
    conflicts = _conflicts(config)
    if config.domain == IMAGE:
        return _with_images(config)
    if start == AUTO:
        if config.prototype_init is not None:
            start = CLASS_MEANS if config.prototype_init == CLASS_MEANS else RANDOM
        elif is_frozen:
            start = CLASS_MEANS
        else:
            start = RANDOM if conflicts else LINEAR
    if start == LINEAR:
        return _linear(config, conflicts, class_names)
    own_init = config.prototype_init not in (None, CLASS_MEANS)
    if (start == CLASS_MEANS and own_init) or (start == RANDOM and config.prototype_init == CLASS_MEANS):
        raise FieldError(
            *(_field("start"), f" is {start}, and ", _field("prototype_init"), f" is {config.prototype_init}; "),
            *("leave ", _field("prototype_init"), " out"),
        )
    return dataclasses.replace(
        config, start=start, prototype_init=CLASS_MEANS if start == CLASS_MEANS else config.prototype_init
    )


def unused(config: TverskyConfig, resolved: TverskyConfig) -> Iterator[tuple[str, str]]:
    """Yield the options that do nothing, each with the option whose value is why.

    Args:
        config: What was asked for.
        resolved: What `resolve_start` made of it.
    """
    reasons = {
        "code": ("start", resolved.start != LINEAR),
        "unfold_at": ("start", resolved.start != LINEAR),
        "sharpness": ("membership", resolved.membership == "hard"),
        "logit_scale": ("model", resolved.model == "contrast"),
        "num_features": ("feature_bank", resolved.feature_bank == "diagonal"),
        "prototype_gain": ("prototype_init", resolved.prototype_init == CLASS_MEANS),
        "image_start": ("domain", resolved.domain != IMAGE),
        **{name: ("domain", True) for name in _UNUSED_WITH_IMAGES if resolved.domain == IMAGE},
    }
    idle = {name: reason for name, (reason, is_idle) in reasons.items() if is_idle}
    if config.start == AUTO and resolved.start == RANDOM and config.prototype_init is None:
        conflicts = _conflicts(config)
        if all(name in idle for name in conflicts):
            # They have decided how the training starts.
            idle = {name: reason for name, reason in idle.items() if name not in conflicts}
    yield from idle.items()


def _with_images(config: TverskyConfig) -> TverskyConfig:
    """Return the configuration of a training of images.

    Thresholds let a feature be absent: the values of embeddings that are nowhere below 0 hardly change their signs.
    """
    if config.start not in (AUTO, RANDOM):
        raise FieldError(
            *(_field("domain"), f" is {IMAGE}, and ", _field("start"), f" is {config.start}; images start as "),
            *(_field("image_start"), " says: leave ", _field("start"), " out"),
        )
    return dataclasses.replace(config, start=RANDOM, thresholds=True)


def _linear(config: TverskyConfig, conflicts: Sequence[str], class_names: Sequence[str]) -> TverskyConfig:
    if conflicts:
        name = conflicts[0]
        raise FieldError(
            *(_field("start"), f" is {LINEAR}, which decides ", _field(name), f"; got {getattr(config, name)!r}: "),
            *("leave ", _field(name), f" out, or choose {CLASS_MEANS} or {RANDOM}"),
        )
    count = len(class_names)
    attributes = config.attributes
    if not attributes and config.code != "hierarchy":
        own = config.code == "classes"
        attributes = class_attributes(count) if own else read_attributes(Path(config.code), class_names)
    attributes = completed(attributes, count) if attributes else ()
    features = 2 * (len(attributes) or num_of_hierarchy(count))
    return dataclasses.replace(
        config,
        **FORM,
        start=LINEAR,
        num_features=features,
        fixed=config.fixed or FIXED,
        attributes=attributes,
    )


def _conflicts(config: TverskyConfig) -> list[str]:
    """Return the options that were given other values than a linear start leads to."""
    if config.start == LINEAR and all(getattr(config, name) == value for name, value in FORM.items()):
        return []
    defaults = TverskyConfig()
    return [
        name
        for name in (*FORM, *_UNUSED)
        if getattr(config, name) not in (getattr(defaults, name), FORM.get(name, getattr(defaults, name)))
    ]


def _field(name: str) -> Field:
    return Field(TverskyConfig, name)
