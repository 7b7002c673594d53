"""The head of a checkpoint as the start of another training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.fields import Field, FieldError
from tnn_train.model.checkpoint import Checkpoint, load_checkpoint, refuse_run
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel

__all__ = ["keep_head", "with_kept_head"]


def with_kept_head(
    config: ModelConfig, source: str, class_names: Sequence[str], preprocessing: Preprocessing
) -> ModelConfig:
    """Return the configuration with the form of a checkpoint's head.

    Args:
        config: What was asked for; an option of the head that has its default may differ from the checkpoint's.
        source: The checkpoint folder.
        class_names: The classes of the images.
        preprocessing: How the images are prepared.

    Raises:
        UsageError: If the checkpoint has another head, other options or other classes, has learned images of another
            size, or is none.
        ArtifactError: If it cannot be read.
    """
    checkpoint = _read(source)
    theirs = checkpoint.config
    if config.head != theirs.head:
        raise FieldError(
            *(Field(ModelConfig, "head"), f" is {config.head}, and the head of {source} is to be kept, which is "),
            *(f"{theirs.head}; choose that as ", Field(ModelConfig, "head")),
        )
    if tuple(class_names) != checkpoint.class_names:
        raise UsageError(
            f"the head of {source} is to be kept, and the images have other classes ("
            f"{_difference(class_names, checkpoint.class_names)}); give images of its classes, in their order, or take "
            "its backbone only"
        )
    if config.options is not None:
        defaults = type(config.options)()
        for field in dataclasses.fields(config.options):
            ours, kept = (getattr(options, field.name) for options in (config.options, theirs.options))
            if ours not in (kept, getattr(defaults, field.name)):
                name = Field(type(config.options), field.name)
                raise FieldError(
                    name,
                    f" is {ours!r}, and the head of {source} is to be kept, which has {kept!r}; leave ",
                    name,
                    " out",
                )
    size = (preprocessing.height, preprocessing.width)
    if theirs.image_size not in ((), size):
        raise UsageError(
            f"the head of {source} is to be kept, which depends on images of {_size(theirs.image_size)} pixels, and "
            f"the images have {_size(size)}; give images of that size (--image-size, image_size=)"
        )
    return config.with_options(theirs.options)


def keep_head(model: ImageModel, source: str) -> None:
    """Give the head of a model the weights of a checkpoint's, and the images that they follow from, if there are any.

    Args:
        model: Built from a configuration that `with_kept_head` returned, its head in its final form.
        source: The checkpoint folder.

    Raises:
        ArtifactError: If it cannot be read.
    """
    kept = _read(source).model
    model.head.load_state_dict(kept.head.state_dict())
    if model.images is not None and kept.images is not None:
        model.images.load_state_dict(kept.images.state_dict())


def _read(source: str) -> Checkpoint:
    path = Path(source)
    refuse_run(path)
    if not path.is_dir():
        raise UsageError(
            f"the head of {source} is to be kept, which is no checkpoint folder; expected one, such as RUN/best, or "
            "what tnn-train unfold makes of a linear classifier"
        )
    return load_checkpoint(path)


def _size(rows_columns: Sequence[int]) -> str:
    return "x".join(map(str, rows_columns))


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Say how two lists of class names differ."""
    if len(ours) != len(theirs):
        return f"{len(ours)}, and the checkpoint {len(theirs)}"
    place = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    order = "the same ones in another order: " if sorted(ours) == sorted(theirs) else ""
    return f"{order}class {place} is {ours[place]!r}, and the checkpoint's {theirs[place]!r}"
