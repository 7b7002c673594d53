"""What the report of a training says of a similarity matching head: its circuit, and what each unit stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from tnn_train.heads.description import Block, Card, Cards, Image, Sample, Section, Table, Text
from tnn_train.heads.matching.circuit import Circuit

__all__ = ["circuit_section"]

_MOST_UNITS, _MOST_IMAGES, _MOST_CLASSES = 50, 6, 2


@torch.no_grad()
def circuit_section(
    circuit: Circuit, iterations: int, weight: Tensor, sample: Sample | None, units: Tensor | None
) -> Section:
    """Return the section on the circuit and the units of a trained head.

    Args:
        circuit: The circuit.
        iterations: How many it makes in evaluation if it is non-negative.
        weight: Of the classifier, ``[C, K]``.
        sample: Training images; ``None`` for what the weights say alone.
        units: The activities of the units in these images, ``[n, K]``.
    """
    blocks: list[Block] = [
        Text(
            "The units of the circuit are driven by the embedding and inhibit each other. They are trained to be alike "
            "where embeddings are, and a linear classifier reads them."
        ),
        _facts(circuit, iterations),
    ]
    if sample is not None and units is not None:
        # What is the same for all classes decides nothing.
        blocks += _cards(units, weight - weight.mean(0), sample)
    return Section("Similarity matching", blocks)


def _facts(circuit: Circuit, iterations: int) -> Table:
    values = torch.linalg.eigvalsh(circuit.lateral.double())
    rows = [
        ("units", str(len(values))),
        ("activation", "non-negative" if circuit.is_rectified else "linear"),
        ("eigenvalues of the lateral weights", f"{values[0]:.3g} to {values[-1]:.3g}"),
        ("largest step that settles", f"{2 / values[-1]:.3g}"),
    ]
    if circuit.is_rectified:
        rows += [("step", f"{circuit.pace:.3g}"), ("iterations until it has settled", str(iterations))]
    return Table(rows)


def _cards(units: Tensor, weight: Tensor, sample: Sample) -> list[Block]:
    """Return a card for each unit, or for those that do most to the logits."""
    strength = units.std(0, correction=0) * weight.abs().amax(0)
    shown = sorted(strength.topk(min(_MOST_UNITS, len(strength))).indices.tolist())
    left_out = (
        f"Shown are {len(shown)} of {len(strength)} units, those that do most to the logits. "
        if len(shown) < len(strength)
        else ""
    )
    about = Text(
        f"{left_out}Below each image is its class and the activity of the unit. Beside a class is what the unit adds "
        "to its logit, beyond what it adds to all, in the image where it is most active.",
        is_aside=True,
    )
    return [about, Cards([_card(index, units[:, index], weight[:, index], sample) for index in shown])]


def _card(index: int, activity: Tensor, weight: Tensor, sample: Sample) -> Card:
    strongest = activity.topk(min(_MOST_IMAGES, len(activity)))
    names, most = sample.class_names, activity.max() * weight
    order = most.argsort(descending=True).tolist()
    count = min(_MOST_CLASSES, len(order) // 2)
    told = [f"{names[label]} ({most[label]:+.2f})" for label in [*order[:count], *order[len(order) - count :]]]
    share = 100 * float((activity > 0).float().mean())
    return Card(
        f"Unit {index}",
        f"Active in {share:.0f}% of these images.",
        [
            Image(place, (names[sample.labels[place]], f"{value:.2f}"))
            for value, place in zip(strongest.values.tolist(), strongest.indices.tolist(), strict=True)
        ],
        "Speaks for and against:",
        told,
        "" if share else "Active in no image.",
    )
