"""What a drawing shows of an image, whether as a picture or on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tnn_runtime.drawing.heat import NOTABLE, rgb
from tnn_runtime.drawing.item import Item, strongest_features
from tnn_runtime.drawing.words import Name, Words, number, part_title, percent, place, sentence
from tnn_runtime.explain.exemplars import Exemplars
from tnn_runtime.explain.result import Contrast, Explanation, Named

__all__ = ["Bar", "Box", "Chart", "Content", "Face", "Heat", "content"]

Box: TypeAlias = tuple[int, int, int, int]
"""A place in a picture: ``(top, left, bottom, right)`` in its pixels."""

_OTHERS = "all other features"
_OTHERS_TOGETHER = "all other features, and what features do only together"
_LEFT = "These do not add up: what they leave is a bar of its own."
_BIAS = "bias, whatever the image is"
_TOGETHER = "the parts only together"
_CLASSES = 5
_MOST_SHARES = 3
_EVEN = 1e-3
"""A map that varies less than that, as a share of its largest value, tells no place."""


@dataclass(frozen=True)
class Bar:
    """What something adds to a logit, or to the difference of two: above 0 it speaks for the class."""

    title: Words
    value: float


@dataclass(frozen=True)
class Chart:
    """Bars on one scale, and what they add up to."""

    title: Words
    note: Words
    bars: tuple[Bar, ...]

    @property
    def zero(self) -> float:
        """Where 0 is, as a share of the width from the left."""
        low, high = self._reach
        return low / (low + high) if low else 0.0

    def share(self, bar: Bar) -> float:
        """Return how long a bar is, as a share of the width."""
        return abs(bar.value) / sum(self._reach) if bar.value else 0.0

    @property
    def _reach(self) -> tuple[float, float]:
        """How far the bars reach below 0, and above it."""
        values = [bar.value for bar in self.bars]
        return -min([0.0, *values]), max([0.0, *values])


@dataclass(frozen=True)
class Heat:
    """A map ``[h, w]`` of where something comes from, and that in words."""

    title: Words
    values: NDArray[np.float32]
    words: Words


@dataclass(frozen=True)
class Face:
    """What a feature looks like: training images that have it, and where this image has it, as far as that is known."""

    title: Words
    description: Words
    examples: tuple[tuple[Image.Image, Box | None, Name, str], ...]
    heat: Heat | None


@dataclass(frozen=True)
class Content:
    """All that is shown of one image."""

    name: Name
    heading: Words
    sentence: Words
    picture: Image.Image
    scores: tuple[tuple[Name, str], ...]
    heats: Sequence[Heat]
    charts: tuple[Chart, ...]
    faces: tuple[Face, ...]


def content(item: Item) -> Content:
    """Return what is shown of an image."""
    explanation = item.explanation
    answer: Words = [Name(explanation.label), f" ({percent(explanation.score)})"]
    return Content(
        name=Name(item.name),
        heading=["Rejected: ", *answer] if item.rejected else answer,
        sentence=sentence(item),
        picture=rgb(item.picture),
        scores=_scores(item),
        heats=_heats(item),
        charts=tuple(_charts(explanation)),
        faces=tuple(_faces(item)),
    )


def _scores(item: Item) -> tuple[tuple[Name, str], ...]:
    """Return the best classes that are known, with their scores, best first."""
    found = {one.label: one.score for one in item.all}
    if contrast := item.explanation.contrast:
        found[contrast.label] = contrast.score
    best = sorted(found.items(), key=lambda one: -one[1])[:_CLASSES]
    return tuple((Name(label), percent(score)) for label, score in best)


def _charts(explanation: Explanation) -> Iterable[Chart]:
    label, contrast = Name(explanation.label), explanation.contrast
    if contrast:
        yield from _contrast_charts(label, contrast, explanation.absence)
    lost = {one.index: explanation.logit - explanation.without([one.index]) for one in explanation.features}
    yield Chart(
        ["For and against ", label, ", by feature"],
        ["What the logit of ", label, f", {_plain(explanation.logit)}, would lose {explanation.absence}."],
        tuple(Bar(_title(one), lost[one.index]) for one in explanation.features if lost[one.index]),
    )
    yield Chart(
        ["For and against ", label, ", by part"],
        [f"logit {_plain(explanation.logit)} = {_formula(explanation)}"],
        (*_part_bars(explanation), *_bias_bar(explanation.bias)),
    )


def _contrast_charts(label: Name, contrast: Contrast, absence: str) -> Iterable[Chart]:
    other = Name(contrast.label)
    note: Words = ["The logit of ", label, f" is {_plain(abs(contrast.difference))} "]
    note += ["above" if contrast.difference >= 0 else "below", " that of ", other, "."]
    others, sums = _OTHERS, "The bars add up to that; what is the same for both is left out."
    if not contrast.is_sum:
        others, sums = (
            _OTHERS_TOGETHER,
            f"The bars of features are what that would lose {absence}, one at a time. {_LEFT}",
        )
    rest = [Bar([others], contrast.rest)] if contrast.rest else []
    together = [Bar([_TOGETHER], contrast.interplay)] if contrast.interplay else []
    bias = _bias_bar(contrast.bias)
    yield Chart(
        [label, " rather than ", other, ", by feature"],
        [*note, f" {sums}"],
        (*(Bar(_title(lead), lead.value) for lead in contrast.features), *rest, *bias),
    )
    yield Chart([label, " rather than ", other, ", by part"], [], (*_part_bars(contrast), *together, *bias))


def _part_bars(whole: Explanation | Contrast) -> list[Bar]:
    return [Bar([part_title(part.name)], part.signed) for part in whole.parts]


def _bias_bar(bias: float) -> list[Bar]:
    return [Bar([_BIAS], bias)] if bias else []


def _heats(item: Item) -> Sequence[Heat]:
    explanation, contrast = item.explanation, item.explanation.contrast
    if explanation.maps is None:
        return ()
    label = Name(explanation.label)
    found = [_heat(["Where ", label, " comes from"], explanation.maps.logit, label)]
    other = next((one.maps for one in item.all if contrast and one.index == contrast.index), None)
    if contrast and other is not None:
        rival = Name(contrast.label)
        title: Words = ["Where ", label, " rather than ", rival, " comes from"]
        found.append(_heat(title, explanation.maps.logit - other.logit, label))
    return [heat for heat in found if heat is not None]


def _heat(title: Words, values: NDArray[np.float32], label: Name) -> Heat | None:
    """Return what a map shows: nothing if it is the same everywhere, as that of a feature which the image lacks."""
    strongest = np.abs(values).max()
    if np.ptp(values) <= _EVEN * strongest:
        return None
    words: Words = []
    if values.max() >= NOTABLE * strongest:
        words += ["Most speaks for ", label, f" {place(values)}"]
    if -values.min() >= NOTABLE * strongest:
        words += [", most against it " if words else "Most speaks against it ", place(-values)]
    return Heat(title, values, words)


def _faces(item: Item) -> Iterable[Face]:
    explanation = item.explanation
    titles = {one.index: _title(one) for one in (*explanation.features, *explanation.leads)}
    rows = {feature.index: row for row, feature in enumerate(explanation.features)}
    for index in strongest_features(explanation):
        found, heat = item.exemplars.get(index), None
        if explanation.maps is not None and index in rows:
            heat = _heat(["in this image"], explanation.maps.features[rows[index]], Name(explanation.label))
        if found is not None:
            yield Face(titles[index], _description(found), tuple(_examples(found)), heat)
        elif heat is not None:
            yield Face(titles[index], heat.words, (), heat)


def _examples(found: Exemplars) -> Iterable[tuple[Image.Image, Box | None, Name, str]]:
    """Yield each picture, where the feature is in it, its class, and how much of the feature it has."""
    boxes: Iterable[Box | None] = found.boxes or [None] * len(found.images)
    for image, box, label, value in zip(found.images, boxes, found.labels, found.values, strict=True):
        yield rgb(image), box, Name(label), f"{value:.3g}"


def _description(exemplars: Exemplars) -> Words:
    """Return what is known of a feature: its description, or which classes have it most often."""
    if exemplars.description:
        return [Name(exemplars.description)]
    most = sorted(exemplars.shares.items(), key=lambda one: -one[1])[:_MOST_SHARES]
    words: Words = []
    for label, share in most:
        words += [", " if words else "Seen in ", f"{share:.0%} of ", Name(label)]
    return words


def _formula(explanation: Explanation) -> str:
    """Return how the logit follows from the parts, as these are called here."""
    formula = explanation.formula if explanation.bias else explanation.formula.removesuffix(" + bias")
    titles = {part.name: f"“{part_title(part.name)}”" for part in explanation.parts}
    return re.sub(r"\w+", lambda word: titles.get(word[0], word[0]), formula).replace("-", "\N{MINUS SIGN}")


def _plain(value: float) -> str:
    return number(value).removeprefix("+")


def _title(feature: Named) -> Words:
    return [Name(feature.name)] if feature.name else [feature.title]
