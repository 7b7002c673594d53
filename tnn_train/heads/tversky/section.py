"""What the report of a training says of a Tversky head: its weights, what lies idle, and each prototype's images."""

from __future__ import annotations

from collections.abc import Sequence

from tnn_train.heads.description import Block, Card, Cards, Image, Sample, Section, Table, Text
from tnn_train.heads.tversky.analysis import Duplicate, HeadAnalysis, Prototype, analyse_head
from tnn_train.heads.tversky.projection import TverskyProjection

__all__ = ["prototype_section"]

_MOST_PROTOTYPES = 50
_MOST_INDICES = 30
_MOST_PAIRS = 12

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
    blocks += [
        Text(
            f"The rest was found with a sample of {found.num_images} training images. The head has "
            f"{len(found.prototypes)} prototypes over {found.num_features} features ({head.config.feature_bank} bank, "
            f"{head.config.model} model, {head.config.intersection} intersection, {head.config.difference} "
            "difference). A feature is present where its value is above 0."
        ),
        Section("What lies idle", [_idle(found), Text(_about_idle(found, head), is_aside=True)]),
        Section("Each prototype and its nearest training images", _prototypes(found, sample)),
    ]
    return Section("Prototypes", blocks)


def _weights(head: TverskyProjection) -> Table:
    rows = []
    for name, meaning in _MEANINGS[head.config.model].items():
        fixed = ", fixed" if name in head.config.fixed else ""
        start, now = getattr(head.config, name), getattr(head, name).item()
        rows.append((name.replace("_", " "), f"{now:,.4f}", f"{start:,.4f}{fixed}", meaning))
    return Table(rows, ("weight", "now", "at the start", "meaning"), prose=(3,))


def _idle(found: HeadAnalysis) -> Table:
    """Return what does no work."""
    indices = {
        "Prototypes that are the best for no image": found.dead_prototypes,
        "Features that no image has": found.features_in_no_image,
        "Features that no prototype has": found.features_in_no_prototype,
        "Features that every image and every prototype has": found.features_everywhere,
    }
    pairs = {
        "Prototypes that nearly coincide": found.duplicate_prototypes,
        "Features that nearly coincide": found.duplicate_features,
    }
    lists = {what: _listed([str(index) for index in which], _MOST_INDICES) for what, which in indices.items()}
    lists |= {what: _listed([_pair(pair) for pair in which], _MOST_PAIRS) for what, which in pairs.items()}
    counts = {what: str(len(which)) for what, which in (indices | pairs).items()}
    rows = [(what, counts[what], listed) for what, listed in lists.items()]
    return Table(rows, prose=(2,))


def _pair(pair: Duplicate) -> str:
    return f"{pair.first} and {pair.second} ({pair.cosine:.3f})"


def _listed(items: Sequence[str], most: int) -> str:
    return (", ".join(items[:most]) or "none") + (", …" if len(items) > most else "")


def _about_idle(found: HeadAnalysis, head: TverskyProjection) -> str:
    text = (
        f"Two nearly coincide from a cosine of {found.threshold} on: of the saliences of two prototypes, or of two "
        "rows of the feature bank. "
    )
    if head.config.feature_bank == "diagonal":
        return text + "The features of a diagonal bank are absolute values, so that nearly all are present everywhere."
    return text + "A feature that is present everywhere tells classes apart by its amount only."


def _prototypes(found: HeadAnalysis, sample: Sample) -> list[Block]:
    busiest = sorted(found.prototypes, key=lambda prototype: -prototype.best_for)[:_MOST_PROTOTYPES]
    shown = sorted(busiest, key=lambda prototype: prototype.index)
    left_out = (
        f"Shown are {len(shown)} of {len(found.prototypes)} prototypes, those that are the best for the most images. "
        if len(shown) < len(found.prototypes)
        else ""
    )
    about = Text(
        f"{left_out}Below each image is its class and its similarity; another class is marked. Shared features come "
        "with their mean part of the common measure and the number of these images that have them.",
        is_aside=True,
    )
    return [about, Cards([_card(prototype, found.num_features, sample) for prototype in shown])]


def _card(prototype: Prototype, num_features: int, sample: Sample) -> Card:
    names, count = sample.class_names, prototype.best_for
    share = f"{100 * prototype.of_its_class / count:.1f}%" if count else ""
    images = [
        Image(place, (names[sample.labels[place]], f"{similarity:.2f}"), bool(sample.labels[place] != prototype.label))
        for place, similarity in zip(prototype.nearest.tolist(), prototype.similarities.tolist(), strict=True)
    ]
    shared = ", ".join(
        f"#{feature.index} ({feature.common:.2f}, {feature.images} of {len(images)})".replace(" ", "\N{NO-BREAK SPACE}")
        for feature in prototype.features
    )
    best_for = f"Best for {count} images, {share} of them of its class. " if count else ""
    return Card(
        f"Prototype {prototype.index}, class {names[prototype.label]}",
        f"{best_for}Has {prototype.present} of {num_features} features.",
        images,
        f"Shared: {shared}" if shared else "Shares no feature with them.",
        "" if count else "Best for no image.",
    )
