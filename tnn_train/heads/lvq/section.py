"""What the report of a training says of a head of learning vector quantisation: relevances and prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_train.heads.description import Block, Card, Cards, Image, Sample, Section, Table, Text
from tnn_train.heads.lvq.layer import LvqLayer

__all__ = ["relevances", "sections"]

_MOST_PROTOTYPES = 50
_MOST_FEATURES = 20
_IMAGES = 5
_HALF = 0.5


def sections(head: LvqLayer, sample: Sample | None) -> list[Section]:
    """Return the sections on the relevances and on the prototypes.

    Args:
        head: The trained head.
        sample: Training images; ``None`` for what can be said without any.
    """
    found = [] if head.omega is None else [Section("Relevances", _relevances(head))]
    return [Section("Prototypes", _prototypes(head, sample)), *found]


@torch.no_grad()
def relevances(head: LvqLayer) -> Tensor:
    """Return the diagonal of Lambda, ``[L]``, which sums to 1: how much each feature counts in the distances.

    As Schneider, Biehl and Hammer (2009, Neural Computation 21) read it.
    """
    omega = torch.ones(head.size) if head.omega is None else head.omega.detach().double().cpu()
    diagonal = omega.square() if omega.ndim == 1 else omega.square().sum(0)
    return diagonal / diagonal.sum()


def _relevances(head: LvqLayer) -> list[Block]:
    shares = relevances(head)
    order = shares.argsort(descending=True)
    what = "latent value" if head.network is not None else "value of the embedding"
    most = order[:_MOST_FEATURES].tolist()
    half = int((shares[order].cumsum(0) < _HALF).sum()) + 1
    blocks: list[Block] = [
        Text(
            f"Each {what} counts in the distances by its relevance, an entry of the diagonal of Λ. They sum to 100%; "
            f"at {100 / len(shares):.2g}% each, all would count alike. Half of the sum is in {half} of {len(shares)}."
        ),
        Table([(f"feature {k}", f"{100 * shares[k].item():.2f}%") for k in most], ("", "relevance")),
    ]
    if head.omega is not None and head.omega.ndim == 2:
        spectrum = torch.linalg.svdvals(head.omega.detach().double().cpu()).square()
        weights = spectrum / spectrum.sum()
        effective = float(torch.exp(-(weights * weights.clamp_min(1e-300).log()).sum()))
        blocks.append(
            Text(
                f"Λ has the rank {len(head.omega)}. Its eigenvalues are as even as those of {effective:.1f} dimensions "
                f"that count alike; the largest has {100 * weights[0].item():.0f}% of their sum."
            )
        )
    return blocks


def _prototypes(head: LvqLayer, sample: Sample | None) -> list[Block]:
    config = head.config
    about = Text(
        f"The head has {head.num_prototypes} prototypes in a space of {head.size} dimensions"
        f"{' behind a network' * (head.network is not None)}, and was trained with the loss {config.loss}. The smaller "
        "the squared distance of an image to a prototype, the more like it is."
    )
    if sample is None:
        return [about]
    with torch.no_grad():
        distances = head.distances(torch.as_tensor(sample.embeddings))
    nearest = distances.argmin(1)
    counts = nearest.bincount(minlength=head.num_prototypes)
    shown = sorted(counts.argsort(descending=True, stable=True)[:_MOST_PROTOTYPES].tolist())
    labels = torch.as_tensor(sample.labels)
    cards = [_card(head, place, distances, labels[nearest == place], sample) for place in shown]
    left_out = (
        f"Shown are {len(shown)} of {head.num_prototypes} prototypes, those that are the nearest of the most images. "
        if len(shown) < head.num_prototypes
        else ""
    )
    aside = f"{left_out}Below each image is its class and its squared distance; another class is marked."
    return [about, Text(aside, is_aside=True), Cards(cards)]


def _card(head: LvqLayer, place: int, distances: Tensor, labels: Tensor, sample: Sample) -> Card:
    names: Sequence[str] = sample.class_names
    owner, count = int(head.owners[place]), len(labels)
    images = [
        Image(row, (names[sample.labels[row]], f"{distances[row, place].item():.3g}"), sample.labels[row] != owner)
        for row in distances[:, place].topk(min(_IMAGES, len(distances)), largest=False).indices.tolist()
    ]
    share = f", {100 * (labels == owner).double().mean().item():.1f}% of them of its class" if count else ""
    return Card(
        f"Prototype {place}, class {names[owner]}",
        f"Nearest to {count} of {len(distances)} images{share}.",
        images,
        warning="" if count else "Nearest to no image.",
    )
