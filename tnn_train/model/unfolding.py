"""A checkpoint with a linear head as one with the Tversky head of the same predictions, and the proof of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.text import a_head
from tnn_train.errors import UnfoldingError
from tnn_train.heads import BASELINE, LinearHead, TverskyHead
from tnn_train.heads.tversky.attributes import Attribute, group_lines
from tnn_train.heads.tversky.config import LINEAR, TverskyConfig
from tnn_train.heads.tversky.start import resolve_start
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.image_model import ImageModel, embed
from tnn_train.model.inputs import random_images
from tnn_train.model.state_dicts import check_values

__all__ = ["TOLERANCE", "Difference", "Unfolding", "compare_heads", "describe_unfolding", "unfold_checkpoint"]

TOLERANCE = 1e-5
"""How far centred logits may be apart, as a share of their scale: see `compare_heads`."""

_UNFOLDED = "unfolded"
_RANDOM = 32


class Difference(NamedTuple):
    """How far an unfolded head is from its linear layer."""

    largest: float
    """The largest difference of two centred logits, as a share of their scale."""

    scale: float
    """The largest centred logit of the linear layer, in absolute value."""

    changed: int
    """How many images have another class first; their two best classes are nearer than the tolerance."""


@dataclass(frozen=True)
class Unfolding:
    """How a Tversky checkpoint came about; in its ``training``, below ``"unfolded"``.

    Args:
        code: The attributes that were asked for: classes, hierarchy or the name of a file.
        images: How many images the two heads were compared on.
        random_images: How many of them are random pixels.
        difference: As `Difference.largest`.
        scale: As `Difference.scale`.
        changed: As `Difference.changed`.
        notes: What is worth knowing, a sentence each.
    """

    code: str
    images: int
    random_images: int
    difference: float
    scale: float
    changed: int
    notes: tuple[str, ...] = ()


def unfold_checkpoint(checkpoint: Checkpoint, code: str = "hierarchy", *, source: str = "the checkpoint") -> Checkpoint:
    """Return a checkpoint with the Tversky head that has the predictions of a linear one.

    Its features are attributes that classes share. It is compared with the linear head on the checkpoint's samples and
    on images of random pixels, as `compare_heads` does; what was found is in its ``training``, as an `Unfolding`.

    Args:
        checkpoint: One with a linear head.
        code: The attributes: ``"classes"``, ``"hierarchy"``, or the path of a CSV file, as
            `tnn_train.heads.tversky.attributes.read_attributes` takes it.
        source: What to call the checkpoint in an error.

    Raises:
        UsageError: If the head is of another family, or the attributes cannot be used.
        ArtifactError: If a weight is no finite number.
        UnfoldingError: If the predictions differ by more than `TOLERANCE`.
    """
    linear, names = checkpoint.model.head, checkpoint.class_names
    if not isinstance(linear, LinearHead):
        raise UsageError(
            f"{source} has {a_head(linear.family)}, which is no linear map of the embedding; expected a {BASELINE} head"
            + ("; it can be exported and trained further as it is" if isinstance(linear, TverskyHead) else "")
        )
    check_values(checkpoint.model.state_dict(), source)
    form = resolve_start(TverskyConfig(start=LINEAR, code=code), names, is_frozen=False)
    head = TverskyHead.from_linear(linear, form)
    images = np.concatenate([checkpoint.samples, random_images(checkpoint.preprocessing, _RANDOM)])
    difference = compare_heads(linear, head, embed(checkpoint.model.backbone, checkpoint.preprocessing, images))
    if not difference.largest <= TOLERANCE:
        raise UnfoldingError(
            f"on {len(images)} images the unfolded head of {source} differs by {difference.largest:.1e} of the largest "
            f"logit, allowed {TOLERANCE:.0e}: its sums over {head.num_features} features are too long for float32; "
            "choose a code with fewer attributes"
        )
    found = Unfolding(
        code if code in ("classes", "hierarchy") else Path(code).name,
        len(images),
        _RANDOM,
        *difference,
        tuple(_notes(linear.weight, head.config)),
    )
    return dataclasses.replace(
        checkpoint,
        model=ImageModel(checkpoint.model.backbone, head).eval(),
        config=dataclasses.replace(checkpoint.config, head=TverskyHead.family).with_options(head.config),
        metrics={**checkpoint.metrics, "unfolded_images": found.images, "unfolded_difference": found.difference},
        training={**checkpoint.training, _UNFOLDED: dataclasses.asdict(found)},
    )


@torch.no_grad()
def compare_heads(linear: LinearHead, unfolded: TverskyHead, embeddings: Tensor) -> Difference:
    """Compare an unfolded head with its linear layer.

    Logits are centred first: their mean over the classes, which no softmax sees, is taken away. The scale is the
    largest centred logit of the linear layer over all embeddings, in absolute value. The linear layer is computed in
    float64 and the unfolded head as it is; means and differences are in float64.

    Args:
        linear: A layer from D values to C classes.
        unfolded: What it was unfolded into.
        embeddings: Float32 ``[N, D]``.
    """
    weight, bias = linear.weight.double(), linear.bias.double()
    logits = functional.linear(embeddings.double(), weight, bias)
    found = unfolded(embeddings).double()
    expected, centred = (values - values.mean(1, keepdim=True) for values in (logits, found))
    largest, scale = float((centred - expected).abs().max()), float(expected.abs().max())
    changed = int((logits.argmax(1) != found.argmax(1)).sum())
    return Difference(largest / scale if scale else largest, scale, changed)


def describe_unfolding(checkpoint: Checkpoint) -> list[str]:
    """Return what `unfold_checkpoint` found, in lines to be printed: attributes, their largest groups, the proof."""
    found = Unfolding(**checkpoint.training[_UNFOLDED])
    form = checkpoint.config.tversky
    lines = [
        f"{len(checkpoint.class_names)} classes, {_counted(form.attributes)} (code {found.code}), "
        f"{form.num_features} features: to have each, and not to have it"
    ]
    if groups := group_lines(form.attributes, checkpoint.class_names):
        lines += ["the largest groups of classes that share an attribute:", *(f"  {line}" for line in groups)]
    same = found.images - found.changed
    lines.append(
        f"on {found.images} images ({found.random_images} of random pixels) the logits, less their mean, differ from "
        f"those of the linear head by at most {found.difference:.1e} of the largest, {found.scale:.3g}; "
        f"the first class is the same on {'all' if same == found.images else same}"
        + ("" if same == found.images else f", on the other {found.changed} two classes are equally good")
    )
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _notes(weight: Tensor, form: TverskyConfig) -> Sequence[str]:
    notes = []
    rank = int(torch.linalg.matrix_rank(weight.detach().float()))
    if rank < len(weight):
        notes.append(
            f"the weight {list(weight.shape)} has rank {rank}, fewer than its {len(weight)} classes: no embedding has "
            "the features of every prototype, so that prototypes are kept as feature values, not as embeddings; the "
            "predictions are the same"
        )
    named = sum(attribute.name is not None for attribute in form.attributes)
    if named and (added := len(form.attributes) - named):
        notes.append(
            f"the table's {_counted(form.attributes[:named])} {'do' if named > 1 else 'does'} not tell all classes "
            f"apart, as predictions do; {added} more were added, each to be one class"
        )
    return notes


def _counted(attributes: Sequence[Attribute]) -> str:
    return f"{len(attributes)} attribute{'s' if len(attributes) > 1 else ''}"
