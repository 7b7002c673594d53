"""What the report of a training says of a parts head: what the end of the training did, and each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_train.heads.description import Block, Card, Cards, Image, Sample, Section, Table, Text
from tnn_train.heads.parts.config import PIPNET, PROTOPNET
from tnn_train.heads.parts.projection import NOWHERE

__all__ = ["LearnedParts", "parts_section"]

_MOST_PARTS = 50
_NEAREST = 5
_MOST_WEIGHTS = 3
_SHOWN = 0.005

_ABOUT = {
    PROTOPNET: "Each part is a patch of a training image of its class. An image is as much like a part as its most "
    "similar place; the logit of a class is the weighted sum of these similarities.",
    PIPNET: "Each part is a channel of the map: the softmax over the channels says what a place is. An image has as "
    "much of a part as the place that has it most; the logit of a class is the weighted sum, 0 where no part is.",
}


@dataclass(frozen=True)
class LearnedParts:
    """The parts of a trained head, on the CPU.

    Args:
        kind: Of the head.
        weight: ``[C, P]``.
        sources: Where each part comes from, int64 ``[P, 3]``: `PartsHead.sources`.
        steps: What the end of the training did: `PartsHead.steps`.
        similarities: Returns how far each part is in images, ``[n, P]``, from their maps.
        titles: Returns what the parts are called, for the names of the classes.
    """

    kind: str
    weight: Tensor
    sources: Tensor
    steps: Tensor
    similarities: Callable[[Tensor], Tensor]
    titles: Callable[[Sequence[str]], Sequence[str | None]]


def parts_section(head: LearnedParts, sample: Sample | None) -> Section:
    """Return the section on the parts of a trained head.

    Args:
        head: The head.
        sample: Training images; ``None`` for the learned weights alone.
    """
    weight = head.weight
    used = (weight != 0).any(0)
    blocks: list[Block] = [
        Text(_ABOUT[head.kind]),
        Text(
            f"The head has {weight.shape[1]} parts, {int(used.sum())} of them with a weight; of the "
            f"{weight.numel()} weights {int((weight != 0).sum())} are not 0."
        ),
        *_steps(head),
    ]
    if sample is not None:
        blocks += _cards(head, sample)
    return Section("Parts", blocks)


def _steps(head: LearnedParts) -> list[Block]:
    before, projected, fitted, bound = head.steps.tolist()
    if fitted < 0:
        return []
    rows = [("after the last step of the training", f"{before:.4f}")]
    if head.kind == PROTOPNET:
        rows.append(("after each prototype became a patch", f"{projected:.4f}"))
    rows.append(("after the fit of the last layer alone", f"{fitted:.4f}"))
    blocks: list[Block] = [Table(rows, ("accuracy on the training images", ""), prose=(0,))]
    if head.kind == PROTOPNET:
        blocks.append(
            Text(
                f"By how far the prototypes moved, their projection could change the answer to at most {bound:.1%} of "
                "the training images.",
                is_aside=True,
            )
        )
    return blocks


def _cards(head: LearnedParts, sample: Sample) -> list[Block]:
    names, weight = sample.class_names, head.weight
    with torch.no_grad():
        similarities = torch.cat([head.similarities(x) for x in torch.split(sample.embeddings, 64)])
    busiest = weight.abs().sum(0).argsort(descending=True, stable=True)[:_MOST_PARTS].sort().values.tolist()
    titles = head.titles(names)
    cards = []
    for part in busiest:
        values = similarities[:, part]
        nearest = values.topk(min(_NEAREST, len(values))).indices.tolist()
        added = weight[:, part].tolist()
        most = sorted(range(len(added)), key=lambda label: -abs(added[label]))[:_MOST_WEIGHTS]
        image, row, column = head.sources[part].tolist()
        source = f"From training image {image}, row {row} and column {column} of its map." if image != NOWHERE else ""
        cards.append(
            Card(
                str(titles[part]),
                source,
                [Image(place, (names[sample.labels[place]], f"{values[place]:.2f}")) for place in nearest],
                "Its weights:",
                [
                    f"{weight[label, part]:+.2f} for {names[label]}"
                    for label in most
                    if abs(weight[label, part]) >= _SHOWN
                ],
                "" if image != NOWHERE else "Taken from no training image.",
            )
        )
    shown = f"Shown are {len(cards)} of {weight.shape[1]} parts, those with the largest weights. " * (
        len(cards) < weight.shape[1]
    )
    about = f"{shown}Below each image is its class, and how far it has the part. The exemplars show the patches."
    return [Text(about, is_aside=True), Cards(cards)]
