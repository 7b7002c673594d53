"""The prototypes of a Tversky head in a report: each with its nearest images, and what it shares with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tnn_train.heads.description import Block, Card, Cards, Image, Sample, Text
from tnn_train.heads.tversky.analysis import HeadAnalysis, Prototype

__all__ = ["prototype_cards"]

_MOST_PROTOTYPES = 50


def prototype_cards(found: HeadAnalysis, sample: Sample, titles: Sequence[str]) -> list[Block]:
    """Return a card for each prototype, or for those that are the best for the most images.

    Args:
        found: What is known of the head.
        sample: The images that it was found with.
        titles: What each feature is called.
    """
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
    return [about, Cards([_card(prototype, found.num_features, sample, titles) for prototype in shown])]


def _card(prototype: Prototype, num_features: int, sample: Sample, titles: Sequence[str]) -> Card:
    names, count = sample.class_names, prototype.best_for
    share = f"{100 * prototype.of_its_class / count:.1f}%" if count else ""
    images = [
        Image(place, (names[sample.labels[place]], f"{similarity:.2f}"), bool(sample.labels[place] != prototype.label))
        for place, similarity in zip(prototype.nearest.tolist(), prototype.similarities.tolist(), strict=True)
    ]
    facts = [f"Best for {count} images, {share} of them of its class."] if count else []
    facts += [f"Has {prototype.present} of {num_features} features."]
    facts += [] if math.isnan(prototype.centrality) else [f"Centrality {prototype.centrality:.2f}."]
    return Card(
        f"Prototype {prototype.index}, class {names[prototype.label]}",
        " ".join(facts),
        images,
        "Shared with them:" if prototype.features else "Shares no feature with them.",
        [
            f"{titles[feature.index]} ({feature.common:.2f},\N{NO-BREAK SPACE}{feature.images}\N{NO-BREAK SPACE}of"
            f"\N{NO-BREAK SPACE}{len(images)})"
            for feature in prototype.features
        ],
        "" if count else "Best for no image.",
    )
