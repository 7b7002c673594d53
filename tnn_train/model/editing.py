"""Checkpoints that a person edited: features and prototypes left out, features named, a class added."""

from __future__ import annotations

import dataclasses
import logging
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_runtime.answers.hierarchy import levels_of
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.errors import UsageError
from tnn_runtime.explain.exemplars import Gallery
from tnn_runtime.images.folders import alike_names
from tnn_runtime.text import SEPARATOR, a_head, why_not_utf8
from tnn_train.heads import Head
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.density import density_with_class
from tnn_train.model.image_model import ImageModel, embed
from tnn_train.model.learned_images import LearnedImages

__all__ = ["EDITS", "Edit", "add_class", "describe_edit", "edit_checkpoint"]

_logger = logging.getLogger(__name__)

EDITS = "edits"
"""Where the training of a checkpoint has its edits, the first one first."""

_EVERY = 3
"""Of the images of a new class, each third one is held out."""


@dataclass(frozen=True)
class Edit:
    """An edit on record, in the ``training`` of a checkpoint and of its bundles, in the list `EDITS`.

    Args:
        checkpoint: `Checkpoint.digest` of what was edited.
        changes: What was changed, a line each.
        results: What that did to held-out images, a line each.
        dropped_features: The features that were left out.
        dropped_prototypes: The prototypes that were left out.
        renamed_features: The new names of features, by their numbers as text.
        added_class: The name of a class that was added; ``None`` without one.
        samples: How many held-out images of known class the checkpoint has; those of a new class do not count.
        accuracy_before: Of the checkpoint before the edit, on these; ``None`` without any.
        accuracy_after: Of the checkpoint after the edit, on the same images.
        new_samples: How many held-out images of the new class there are.
        new_accuracy: The share of these that gets the new class.
        metrics: The metrics of the checkpoint before the edit, which are not those of this one.
    """

    checkpoint: str
    changes: tuple[str, ...]
    results: tuple[str, ...]
    dropped_features: tuple[int, ...] = ()
    dropped_prototypes: tuple[int, ...] = ()
    renamed_features: dict[str, str] = field(default_factory=dict)
    added_class: str | None = None
    samples: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    new_samples: int = 0
    new_accuracy: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def edit_checkpoint(
    checkpoint: Checkpoint,
    drop_features: Sequence[int | str] = (),
    drop_prototypes: Sequence[int] = (),
    rename_features: Sequence[tuple[int | str, str]] = (),
) -> Checkpoint:
    """Return a checkpoint without some features and prototypes, and with names of features.

    Its logits are those that `tnn_runtime.Explanation.without` tells for the features. What was done is in its
    ``training``, as an `Edit`.

    Args:
        checkpoint: What to edit.
        drop_features: Features to leave out, by number or by name, as explanations have them.
        drop_prototypes: Prototypes to leave out, by number.
        rename_features: Features, each with its new name.

    Raises:
        UsageError: If there is nothing to do, no such feature or prototype, a name cannot be used, nothing would be
            left, or the head cannot do without.
    """
    if not (drop_features or drop_prototypes or rename_features):
        raise UsageError("nothing is to be edited; give features or prototypes to leave out, or features to rename")
    head = checkpoint.model.head
    names = head.feature_names(checkpoint.class_names)
    features = sorted({_feature(head, names, one) for one in drop_features})
    prototypes = sorted({_prototype(head, index) for index in drop_prototypes})
    renamed = [(_feature(head, names, one), _usable(name, "a feature")) for one, name in rename_features]
    if len(dict(renamed)) < len(renamed):
        raise UsageError("a feature is to get two names; give it one")
    if both := {*features} & dict(renamed).keys():
        raise UsageError(f"feature {min(both)} is to be left out and to get a name; do one of the two")
    edited = head.without(features, prototypes) if features or prototypes else head
    if renamed:
        edited = edited.renamed(dict(renamed))
        _refuse_taken(edited.feature_names(checkpoint.class_names), dict(renamed))
    changes = [f"feature {index}{_called(names[index])} is left out" for index in features]
    changes += [f"prototype {index} is left out" for index in prototypes]
    if prototypes:
        changes.append(f"the {edited.num_prototypes} prototypes that are left are numbered anew, from 0 on")
    changes += [f"feature {index} is called {name!r}{_before(names[index])}" for index, name in renamed]
    before, after = _logits(checkpoint, head, edited)
    compared = _compared(before, after, checkpoint.labels)
    edit = Edit(
        checkpoint.digest,
        tuple(changes),
        (_told(compared, int((before.argmax(1) != after.argmax(1)).sum()), len(before)),),
        tuple(features),
        tuple(prototypes),
        {str(index): name for index, name in renamed},
        **compared,
        metrics=checkpoint.metrics,
    )
    exemplars, images = checkpoint.exemplars, checkpoint.model.images
    if exemplars is not None:
        exemplars = exemplars.without_features(features).without_prototypes(prototypes)
    images = None if images is None else images.without("prototypes", prototypes)
    return _on_record(dataclasses.replace(checkpoint, exemplars=exemplars), edit, edited, images)


def add_class(checkpoint: Checkpoint, name: str, images: NDArray[np.uint8]) -> Checkpoint:
    """Return a checkpoint with one more class, from a few images and without a training.

    Each third image is held out: the class is made from the others. Where the names of the classes are sorted, the new
    one gets its place among them, else the last one. The images go into the checkpoint, those that are held out as
    samples. What was done is in its ``training``, as an `Edit`.

    Args:
        checkpoint: What to add the class to.
        name: What the class is called.
        images: Of the class, uint8 ``[n, H, W, C]`` of the model's size; equal ones count once.

    Raises:
        UsageError: If there is such a class, the images are too few, or the head cannot have a class added.
    """
    names = checkpoint.class_names
    _refuse_known(name, names)
    images = images[np.sort(np.unique(images, axis=0, return_index=True)[1])]
    if len(images) < 2:
        raise UsageError(
            f"got {len(images)} different image{'s' * (len(images) != 1)} of {name!r}; expected at least 2: some that "
            "the class is made from, and some that it is tried on"
        )
    others = checkpoint.samples if checkpoint.calibration is None else checkpoint.calibration
    if not len(others):
        raise UsageError("the checkpoint has no images of its classes, which a new one has to be told from")
    is_held_out = np.arange(len(images)) % _EVERY == min(_EVERY, len(images)) - 1
    made, held_out = images[~is_held_out], images[is_held_out]
    place = bisect(names, name) if list(names) == sorted(names) else len(names)
    model = checkpoint.model
    x, strangers, tried = (embed(model.backbone, checkpoint.preprocessing, one) for one in (made, others, held_out))
    head = model.head.with_class(x, strangers, place).eval()
    before, after = _logits(checkpoint, model.head, head)
    labels = checkpoint.labels
    moved = None if labels is None else labels + (labels >= place)
    compared = _compared(before, after, labels, moved)
    with torch.inference_mode():
        found = int((head(tried).argmax(1) == place).sum())
    taken = int((after.argmax(1) == place).sum())
    changes = [f"the class {name!r} is added at place {place}, from {len(made)} images and without a training"]
    if place < len(names):
        changes.append(
            f"each class from {names[place]!r} on has the next higher number now, since the names are sorted: tell "
            "classes by their names"
        )
    changes += _kinship(name, names)
    if model.images is not None:
        changes.append("the learned images of prototypes and features are left out: the new prototype has none")
    results = (
        f"{found} of {len(held_out)} held-out images of {name!r} get this class",
        _told(compared, taken, len(before), f"get the class {name!r} now"),
    )
    edit = Edit(
        checkpoint.digest,
        tuple(changes),
        results,
        added_class=name,
        **compared,
        new_samples=len(held_out),
        new_accuracy=found / len(held_out),
        metrics=checkpoint.metrics,
    )
    larger = dataclasses.replace(
        checkpoint,
        class_names=(*names[:place], name, *names[place:]),
        config=dataclasses.replace(checkpoint.config, num_classes=len(names) + 1),
        samples=np.concatenate([checkpoint.samples, held_out]),
        labels=None if moved is None else np.concatenate([moved, np.full(len(held_out), place, np.int64)]),
        calibration=None if checkpoint.calibration is None else np.concatenate([checkpoint.calibration, made]),
        exemplars=None if checkpoint.exemplars is None else _with_class(checkpoint.exemplars, model.head, head),
        density=None if checkpoint.density is None else density_with_class(checkpoint.density, x.numpy(), place),
    )
    return _on_record(larger, edit, head, None)


def _with_class(exemplars: Gallery, before: Head, after: Head) -> Gallery:
    """Return the exemplars of a head that got a class, whose prototype has none."""
    old, new = (head.arrays().get("prototypes") for head in (before, after))
    if old is None or new is None or len(new) == len(old):
        return exemplars
    moved = (old != new[: len(old)]).any(1).tolist()
    return exemplars.with_prototype_before(moved.index(True) if True in moved else len(moved))


def describe_edit(checkpoint: Checkpoint) -> list[str]:
    """Return what the last edit of a checkpoint did, in lines to be printed."""
    edit = checkpoint.training[EDITS][-1]
    return [*edit["changes"], *edit["results"]]


def _feature(head: Head, names: Sequence[str | None], given: int | str) -> int:
    """Return the number of a feature that is given by its number or its name."""
    if not names:
        raise UsageError(
            f"{a_head(head.family)} has no features that can be edited; train a head that has some, such as linear"
        )
    called = [index for index, name in enumerate(names) if name == given]
    text = str(given)
    if text.isascii() and text.isdecimal() and int(text) < len(names):
        if called and called != [int(text)]:
            _logger.warning(
                "%s is taken for the number of a feature; that with this name is feature %d", text, called[0]
            )
        return int(text)
    if len(called) == 1:
        return called[0]
    raise UsageError(
        f"the head has no feature {given!r}{nearest(text, filter(None, names))}; give numbers of features, 0 to "
        f"{len(names) - 1}, or names, as explanations have them"
    )


def _prototype(head: Head, index: int) -> int:
    if not 0 <= index < head.num_prototypes:
        there = f"prototypes 0 to {head.num_prototypes - 1}" if head.num_prototypes else "none"
        raise UsageError(f"the {head.family} head has no prototype {index}; it has {there}")
    return index


def _usable(name: str, what: str) -> str:
    """Return a name that a person can read."""
    if why := why_not_utf8(name):
        raise UsageError(why)
    if not name.strip() or not name.isprintable() or name != name.strip():
        raise UsageError(f"got the name {name!r} of {what}; expected text on one line, without spaces around it")
    return name


def _refuse_taken(names: Sequence[str | None], renamed: Mapping[int, str]) -> None:
    for index, name in renamed.items():
        others = [other for other, called in enumerate(names) if called == name and other != index]
        if others:
            raise UsageError(f"feature {others[0]} is called {name!r}, too; give feature {index} another name")


def _refuse_known(name: str, names: Sequence[str]) -> None:
    _usable(name, "a class")
    if name in names:
        raise UsageError(f"the checkpoint has a class called {name!r}; give the new one another name")
    if same := next((group for group in alike_names([*names, name]) if name in group), None):
        other = next(one for one in same if one != name)
        raise UsageError(
            f"the checkpoint has a class {other!r}, and {name!r} differs from it in nothing but capitals, accents or "
            "spaces; give the new one another name"
        )


def _kinship(name: str, names: tuple[str, ...]) -> list[str]:
    """Return what the name of a new class means where names are paths, such as ``animal/cat``."""
    before, levels = levels_of(names), levels_of((*names, name))
    if not levels:
        above, separator, _ = name.rpartition(SEPARATOR)
        return [f"{name!r} has no parent, as no other class is below {above!r}"] if separator else []
    for level in reversed(levels):
        count = int((level.owners == level.owners[-1]).sum())
        if count > 1:
            told = "" if before else ", which makes it a parent"
            return [f"{name!r} is one of {count} classes below {level.names[level.owners[-1]]!r}{told}"]
    return [f"{name!r} has no parent, unlike {next(one for one in names if SEPARATOR in one)!r}, and stands for itself"]


def _logits(checkpoint: Checkpoint, *heads: Head) -> list[Tensor]:
    """Return the logits of some heads on the samples of a checkpoint, ``[n, C]`` each."""
    embeddings = embed(checkpoint.model.backbone, checkpoint.preprocessing, checkpoint.samples)
    with torch.inference_mode():
        return [head(embeddings) for head in heads]


def _compared(
    before: Tensor, after: Tensor, labels: NDArray[np.int64] | None, moved: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Return the accuracies of logits ``[n, C]`` before and after an edit, as `Edit` has them."""
    if labels is None or not len(labels):
        return {}
    first, second = (
        float((logits.argmax(1).numpy() == right).mean())
        for logits, right in ((before, labels), (after, labels if moved is None else moved))
    )
    return {"samples": len(labels), "accuracy_before": first, "accuracy_after": second}


def _told(compared: Mapping[str, Any], changed: int, count: int, what: str = "get another class") -> str:
    if not compared:
        return f"{changed} of {count} held-out images, whose classes are not known, {what}"
    first, second = compared["accuracy_before"], compared["accuracy_after"]
    return f"accuracy on {count} held-out images: {first:.4f} before, {second:.4f} after; {changed} of them {what}"


def _called(name: str | None) -> str:
    return f" ({name!r})" if name else ""


def _before(name: str | None) -> str:
    return f", no longer {name!r}" if name else ""


def _on_record(checkpoint: Checkpoint, edit: Edit, head: Head, images: LearnedImages | None) -> Checkpoint:
    """Return a checkpoint with another head and an edit on record; its metrics are those of the edit alone."""
    config = checkpoint.config.with_options(head.options)
    measured = {"edited_samples": edit.samples, "edited_accuracy": edit.accuracy_after, "edited_new": edit.new_accuracy}
    edits = [*checkpoint.training.get(EDITS, ()), dataclasses.asdict(edit)]
    return dataclasses.replace(
        checkpoint,
        model=ImageModel(checkpoint.model.backbone, head, images).eval(),
        config=config.for_size(checkpoint.preprocessing.height, checkpoint.preprocessing.width),
        metrics={name: value for name, value in measured.items() if value},
        training={**checkpoint.training, EDITS: edits},
    )
