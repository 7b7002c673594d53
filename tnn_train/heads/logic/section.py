"""What the report of a training says of a logic head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_train.heads.description import Section, Table, Text

__all__ = ["GATE_NAMES", "section"]

GATE_NAMES = (
    *("0", "not (a or b)", "b and not a", "not a", "a and not b", "not b", "a xor b", "not (a and b)"),
    *("a and b", "a xnor b", "b", "b or not a", "a", "a or not b", "a or b", "1"),
)
"""What each truth table is called, in its order: bit ``2a + b`` is the value at ``a, b``."""


def section(
    tables: Tensor, size: tuple[int, int], num_classes: int, temperature: float, answers: Sequence[Tensor] = ()
) -> Section:
    """Return the gates of each layer, and the answers of both forms of the network.

    Args:
        tables: The truth table of each gate, ``[L, W]``.
        size: How many values there are, and thresholds for each.
        num_classes: How many classes share the gates of the last layer.
        temperature: What votes are divided by.
        answers: For some training images their classes, and the answers of the relaxed and of the discrete network,
            ``[n]`` each; nothing where there are no images.
    """
    counts = torch.stack([torch.bincount(layer.flatten(), minlength=16) for layer in tables])
    order = [kind for kind in counts.sum(0).argsort(descending=True).tolist() if counts[:, kind].any()]
    rows = [[GATE_NAMES[kind], *(f"{count:,}" for count in counts[:, kind].tolist())] for kind in order]
    header = ["gate", *(f"layer {number}" for number in range(1, len(tables) + 1))]
    values, bits = size
    intro = (
        f"{values:,} values with {bits} thresholds each give {values * bits:,} bits; {len(tables)} layers of "
        f"{tables.shape[1]:,} gates follow. The logit of a class is how many of its {tables.shape[1] // num_classes:,} "
        f"gates in the last layer are on, divided by {temperature:g}."
    )
    texts = [Text(intro), *([Text(_compared(*answers))] if answers else [])]
    return Section("Logic gates", [*texts, Table(rows, header, prose=(0,))])


def _compared(labels: Tensor, relaxed: Tensor, discrete: Tensor) -> str:
    right, right_discrete, same = (
        float((one == other).double().mean())
        for one, other in ((relaxed, labels), (discrete, labels), (relaxed, discrete))
    )
    return (
        f"On {len(labels)} training images, the network as it is in training, with gates between 0 and 1, is right in "
        f"{right:.1%}, and the discrete network, which is validated and exported, in {right_discrete:.1%}. Both give "
        f"the same answer in {same:.1%}."
    )
