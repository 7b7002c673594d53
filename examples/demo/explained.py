"""The part of the report that explains the same test images by both heads, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tnn_runtime import Classifier, Explanation, FeatureParts, Part
from tnn_runtime.drawing import Item as Drawn
from tnn_train import ImageData
from tnn_train.report.pictures import figure_url, image_url
from tnn_train.training.loop import TrainResult

__all__ = ["Card", "Item", "explain_images", "explain_one"]

_MINUS = "\N{MINUS SIGN}"
_IMAGES, _CLASSES, _FEATURES = 4, 3, 3
_COLORS = {
    "common": "#2a7f4f",
    "input_only": "#c8553d",
    "prototype_only": "#e0a458",
    "supporting": "#2a7f4f",
    "opposing": "#c8553d",
}


@dataclass(frozen=True)
class Card:
    """How one head came to its answer for an image.

    Args:
        head: The name of the head.
        label: The class that it chose.
        score: The probability that it gave the class, as text.
        is_right: Whether the class is right.
        picture: A chart of the parts of its best classes, a data URL.
        summary: What speaks for the class and against it, in a sentence.
        header: The names of the parts of the chosen class.
        rows: The parts over all features, and those of the strongest features: a name, and a cell for each part.
        sentences: How the logit follows from the parts, and what it would be without the strongest features.
    """

    head: str
    label: str
    score: str
    is_right: bool
    picture: str
    summary: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    sentences: Sequence[str]


@dataclass(frozen=True)
class Item:
    """An image with a card for each head.

    Args:
        number: Its position among the test images.
        right: Its class.
        image: The image, a data URL.
        cards: One for each head.
    """

    number: int
    right: str
    image: str
    cards: Sequence[Card]


def explain_images(
    runs: Mapping[str, TrainResult], data: ImageData, classifiers: Mapping[str, Classifier]
) -> list[Item]:
    """Explain some test images: the first mistakes of any head, and right answers of both to different classes.

    Args:
        runs: The training of each head.
        data: The images.
        classifiers: The loaded bundle of each head.
    """
    numbers = _worth_explaining(list(runs.values()))
    images = [data.test.sources[number] for number in numbers]
    explained = {
        head: classifier.explain(images, top_k=_CLASSES, num_features=_FEATURES)
        for head, classifier in classifiers.items()
    }
    rights = [data.class_names[data.test.labels[number]] for number in numbers]
    return [
        Item(
            number,
            right,
            image_url(data.test.decoded(number)),
            [_card(head, explanations[place], right) for head, explanations in explained.items()],
        )
        for place, (number, right) in enumerate(zip(numbers, rights, strict=True))
    ]


def explain_one(run: TrainResult, data: ImageData, classifier: Classifier) -> Drawn:
    """Explain the first test image that is classified rightly, to be drawn at the top of the report.

    Args:
        run: A training.
        data: The images.
        classifier: The loaded bundle of the training.
    """
    number = int(np.argmax(run.test.predictions == run.test.labels))
    maps = "feature_maps" in classifier.info["outputs"]
    (explanations,) = classifier.explain([data.test.sources[number]], top_k=_CLASSES, maps=maps)
    return Drawn(explanations, data.test.decoded(number), name=f"test image {number}")


def _worth_explaining(runs: Sequence[TrainResult]) -> list[int]:
    labels = runs[0].test.labels
    is_wrong = np.any([run.test.predictions != labels for run in runs], axis=0)
    wrong, right = np.flatnonzero(is_wrong).tolist(), np.flatnonzero(~is_wrong)
    _, firsts = np.unique(labels[right], return_index=True)
    half = _IMAGES // 2
    numbers: list[int] = [*wrong[:half], *right[firsts].tolist(), *wrong[half:]]
    return numbers[:_IMAGES]


def _card(head: str, explanations: Sequence[Explanation], right: str) -> Card:
    best = explanations[0]
    listed = [feature.index for feature in best.features]
    formula = _words(best.formula).replace("-", _MINUS)
    formula = f"{formula}, the bias being {_number(best.bias)}" if best.bias else formula.removesuffix(" + bias")
    return Card(
        head=head,
        label=best.label,
        score=f"{best.score:.1%}",
        is_right=best.label == right,
        picture=figure_url(_plot(explanations)),
        summary=best.summary,
        header=[_words(part.name) for part in best.parts],
        rows=[
            ("all features", [_number(part.signed, "+") for part in best.parts]),
            *((feature.title, _cells(feature, best.parts)) for feature in best.features),
        ],
        sentences=[
            f"logit {_number(best.logit)} = {formula}",
            f"without these {len(listed)} features: logit {_number(best.without(listed))}",
        ],
    )


def _cells(feature: FeatureParts, parts: Sequence[Part]) -> list[str]:
    """Return what a feature adds to each of the parts, nothing for those that it has no share of."""
    shares = {part.name: _number(part.signed, "+") for part in feature.parts}
    return [shares.get(part.name, "") for part in parts]


def _plot(explanations: Sequence[Explanation]) -> Figure:
    """Draw the parts of the best classes: what speaks for a class goes right, against it left."""
    figure = Figure(figsize=(5, 2.2), layout="constrained")
    axes = figure.subplots()
    for row, explanation in enumerate(explanations):
        ends = {True: 0.0, False: 0.0}
        for part in explanation.parts:
            side = part.signed > 0
            label = None if row else _words(part.name)
            axes.barh(row, part.signed, left=ends[side], color=_COLORS.get(part.name), height=0.6, label=label)
            ends[side] += part.signed
        axes.plot([explanation.logit], [row], "kD", markersize=5, label=None if row else "logit")
    axes.set_yticks(range(len(explanations)), [f"class {explanation.label}" for explanation in explanations])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    logit, *parts = zip(*axes.get_legend_handles_labels(), strict=True)
    figure.legend(*zip(*parts, logit, strict=True), loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", _MINUS) if value else "0"
