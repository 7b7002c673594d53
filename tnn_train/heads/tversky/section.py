"""What the report of a training says of a Tversky head: weights, parts, attributes, what lies idle, prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tnn_train.heads.description import Block, Sample, Section, Table, Text
from tnn_train.heads.tversky.analysis import HeadAnalysis, analyse_head
from tnn_train.heads.tversky.attribute_blocks import attribute_blocks, feature_titles
from tnn_train.heads.tversky.idle import Duplicate
from tnn_train.heads.tversky.parts import WEIGHTS
from tnn_train.heads.tversky.projection import TverskyProjection
from tnn_train.heads.tversky.prototype_cards import prototype_cards

__all__ = ["prototype_section"]

_MOST_INDICES = 30
_MOST_NAMES = 12
_SMALL = 0.1
"""A part with a smaller share that differs between the classes is nearly the same for all of them."""

_MEANINGS = {
    "contrast": {
        "alpha": "weight of what only the image has",
        "beta": "weight of what only the prototype has",
        "theta": "weight of what both have",
    },
    "ratio": {
        "alpha": "weight of what only the image has",
        "beta": "weight of what only the prototype has",
        "theta": "offset of the denominator",
        "logit_scale": "factor from similarities to logits",
    },
}


def prototype_section(head: TverskyProjection, sample: Sample | None) -> Section:
    """Return the section on the prototypes and features of a trained head.

    Args:
        head: The head.
        sample: Training images; ``None`` for the learned weights alone.
    """
    blocks: list[Block] = [
        Text(
            "A class scores with the features that an image shares with its prototype, and loses for what only one of "
            "them has. These are the learned weights of the three:"
        ),
        _weights(head),
    ]
    if sample is None:
        unknown = "No embeddings of training images were given, so that nothing can be said of each prototype."
        return Section("Prototypes", [*blocks, Text(unknown)])
    found = analyse_head(head, sample.embeddings, sample.labels)
    titles = feature_titles(head.config, sample.class_names, found.num_features)
    attributes = head.config.attributes if head.config.opposites else ()
    features = f"{found.num_features} features{', half of them opposites of the others' * bool(head.config.opposites)}"
    blocks += [
        Text(
            f"The rest was found with a sample of {found.num_images} training images. The head has "
            f"{len(found.prototypes)} prototypes over {features} ({head.config.feature_bank} bank, "
            f"{'smooth ' * head.config.smooth}{head.config.model} model, {head.config.intersection} intersection, "
            f"{head.config.difference} difference). A feature is present where its value is above 0."
        ),
        Section("What tells the classes apart", [*_parts(found, head), *_centrality(found)]),
        *([Section("Attributes", attribute_blocks(attributes, sample.class_names))] if attributes else []),
        Section("What lies idle", [_idle(found, titles), Text(_about_idle(found, head), is_aside=True)]),
        Section("Each prototype and its nearest training images", prototype_cards(found, sample, titles)),
    ]
    return Section("Prototypes", blocks)


def _parts(found: HeadAnalysis, head: TverskyProjection) -> list[Block]:
    """Return how large the parts of the logits are, and how much of them differs between the classes."""
    rows = []
    for name, weight in WEIGHTS.items():
        part, title = found.parts.get(name), name.replace("_", " ")
        if part is None:
            rows.append((title, "", "", "", f"not used: {weight} is fixed at 0"))
        elif not part.size:
            rows.append((title, "0", "", "", "0 everywhere"))
        else:
            verdict = "nearly the same for all classes" if part.share < _SMALL else "tells classes apart"
            rows.append((title, f"{part.size:,.2f}", f"{part.spread:,.2f}", _percent(part.share), verdict))
    unit = "the denominator" if head.config.model == "ratio" and head.linear is None else "the logits"
    about = Text(
        f"Each part is measured for every image and every class, in units of {unit}. Spread is how far it differs "
        "between the classes, as a root mean square; share is that of its mean square that does. What is the same for "
        f"all classes moves their logits together and decides nothing: of a part with a share below {_SMALL:.0%}, most "
        "is no reason for an answer.",
        is_aside=True,
    )
    return [Table(rows, ("part", "mean size", "spread between classes", "share", ""), prose=(4,)), about]


def _centrality(found: HeadAnalysis) -> list[Block]:
    """Return how near the prototypes are to the images of their classes."""
    about = Text(
        "Centrality is the mean cosine of a prototype's feature values with those of the images of its class, minus "
        "that with the other images. At 0 a prototype is as near to other classes as to its own.",
        is_aside=True,
    )
    if math.isnan(found.centrality):
        return []
    return [Table([("mean centrality of the prototypes", f"{found.centrality:.2f}")]), about]


def _percent(share: float) -> str:
    """Print a share with two digits: ``41%``, ``8.7%``, ``0.02%``."""
    percent = 100 * share
    digits = 0 if percent >= 9.95 else 1 if percent >= 0.95 else 2
    return f"{percent:.{digits}f}%"


def _weights(head: TverskyProjection) -> Table:
    rows = []
    for name, meaning in _MEANINGS[head.config.model].items():
        fixed = ", fixed" if name in head.config.fixed else ""
        meaning = "offset of numerator and denominator" if name == "theta" and head.config.smooth else meaning
        start, now = getattr(head.config, name), getattr(head, name).item()
        rows.append((name.replace("_", " "), f"{now:,.4f}", f"{start:,.4f}{fixed}", meaning))
    return Table(rows, ("weight", "now", "at the start", "meaning"), prose=(3,))


def _idle(found: HeadAnalysis, titles: Sequence[str]) -> Table:
    """Return what does no work."""
    numbers = [str(prototype.index) for prototype in found.prototypes]
    rows = [
        ("Prototypes that are the best for no image", [numbers[index] for index in found.dead_prototypes]),
        ("Features that no image has", [titles[index] for index in found.idle.in_no_image]),
        ("Features that no prototype has", [titles[index] for index in found.idle.in_no_prototype]),
        ("Features that every image and every prototype has", [titles[index] for index in found.idle.everywhere]),
        ("Prototypes that nearly coincide", [_pair(pair, numbers) for pair in found.duplicate_prototypes]),
        ("Features that nearly coincide", [_pair(pair, titles) for pair in found.duplicate_features]),
    ]
    return Table([(what, str(len(which)), _listed(which)) for what, which in rows], prose=(2,))


def _pair(pair: Duplicate, titles: Sequence[str]) -> str:
    return f"{titles[pair.first]} and {titles[pair.second]} ({pair.cosine:.3f})"


def _listed(items: Sequence[str]) -> str:
    most = _MOST_INDICES if all(len(item) < 6 for item in items) else _MOST_NAMES
    return (", ".join(items[:most]) or "none") + (", …" if len(items) > most else "")


def _about_idle(found: HeadAnalysis, head: TverskyProjection) -> str:
    config = head.config
    compared = "rows of the feature bank" + (" with their thresholds" if config.thresholds else "")
    sentences = [
        f"Two nearly coincide from a cosine of {found.threshold} on: of the saliences of two prototypes, or of two "
        f"{compared}.",
        "The features of a diagonal bank are absolute values, so that nearly all are present everywhere."
        if config.feature_bank == "diagonal" and not config.thresholds
        else "A feature that is present everywhere tells classes apart by its amount only.",
    ]
    if config.opposites:
        sentences.append("Of a feature that no image has, every image has the opposite: the two are listed once.")
    return " ".join(sentences)
