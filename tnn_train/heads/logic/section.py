"""What the report of a training says of a logic head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tnn_train.heads.description import Sample, Section, Table, Text
from tnn_train.heads.logic.gates import GateLayer

if TYPE_CHECKING:
    from tnn_train.heads.logic.head import LogicHead

__all__ = ["GATE_NAMES", "describe", "relaxed_and_discrete"]

GATE_NAMES = (
    *("0", "not (a or b)", "b and not a", "not a", "a and not b", "not b", "a xor b", "not (a and b)"),
    *("a and b", "a xnor b", "b", "b or not a", "a", "a or not b", "a or b", "1"),
)
"""What each truth table is called, in its order: bit ``2a + b`` is the value at ``a, b``."""


@torch.no_grad()
def relaxed_and_discrete(head: LogicHead, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits ``[N, C]`` of a head as it is in training, and of its discrete network.

    Args:
        head: The head; it is not changed.
        x: Embeddings ``[N, D]``.
    """
    relaxed = copy.deepcopy(head).train()
    return relaxed(x), copy.deepcopy(head).eval()(x)


def describe(head: LogicHead, sample: Sample | None) -> Sequence[Section]:
    """Return a section with the gates of each layer, and the answers of both forms of the network."""
    layers = [layer for layer in head.layers if isinstance(layer, GateLayer)]
    counts = torch.stack([torch.bincount(layer.tables(), minlength=16) for layer in layers])
    order = [kind for kind in counts.sum(0).argsort(descending=True).tolist() if counts[:, kind].any()]
    rows = [[GATE_NAMES[kind], *(f"{count:,}" for count in counts[:, kind].tolist())] for kind in order]
    header = ["gate", *(f"layer {number}" for number in range(1, len(layers) + 1))]
    size, bits = head.thresholds.values.shape
    intro = (
        f"{size:,} values with {bits} thresholds each give {size * bits:,} bits; {len(layers)} layers of "
        f"{len(layers[0].left):,} gates follow. The logit of a class is how many of its "
        f"{len(layers[-1].left) // head.num_classes:,} gates in the last layer are on, divided by "
        f"{head.temperature:g}."
    )
    return [Section("Logic gates", [Text(intro), *_answers(head, sample), Table(rows, header, prose=(0,))])]


def _answers(head: LogicHead, sample: Sample | None) -> list[Text]:
    if sample is None:
        return []
    labels = torch.as_tensor(sample.labels)
    relaxed, discrete = (logits.argmax(1).cpu() for logits in relaxed_and_discrete(head, sample.embeddings))
    shares = [float((one == other).double().mean()) for one, other in ((relaxed, labels), (discrete, labels))]
    same = float((relaxed == discrete).double().mean())
    return [
        Text(
            f"On {len(labels)} training images, the network as it is in training, with gates between 0 and 1, is right "
            f"in {shares[0]:.1%}, and the discrete network, which is validated and exported, in {shares[1]:.1%}. Both "
            f"give the same answer in {same:.1%}."
        )
    ]
