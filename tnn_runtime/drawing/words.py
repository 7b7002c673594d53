"""What a drawing says: one sentence, and what numbers, parts and places are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.drawing.item import NEGLIGIBLE, Item
from tnn_runtime.explain.attributes import without_not
from tnn_runtime.explain.certificate import Certificate
from tnn_runtime.explain.result import Contrast, FeatureLead
from tnn_runtime.text import one_line

__all__ = ["Name", "Words", "number", "part_title", "percent", "place", "sentence"]

_PARTS = {
    "common": "shared with the prototype",
    "input_only": "only in the image",
    "prototype_only": "only in the prototype",
    "supporting": "features for it",
    "opposing": "features against it",
    "votes": "gates that are on",
}
_MOST_FOR, _MOST_AGAINST = 3, 2
_LEAST = 0.0005
"""What is smaller is shown as about 0."""


class Name(str):
    """A name that somebody else gave, within words of ours: it may be in any language, and run in any direction."""

    def __new__(cls, text: str) -> Name:
        """Return a name on one line, with controls escaped."""
        return super().__new__(cls, one_line(text))


Words = list[str]
"""A text in pieces, some of which are a `Name`."""


def number(value: float) -> str:
    """Return a number with its sign and two decimals, or what tells it from 0: ``"+1.25"``, ``"+0.003"``, ``"0"``."""
    size = abs(value)
    if size < _LEAST:
        return "\N{ALMOST EQUAL TO}0" if value else "0"
    text = f"{value:+.0f}" if size >= 99.95 else f"{value:+.2f}" if size >= 0.005 else f"{value:+.1g}"
    return text.replace("-", "\N{MINUS SIGN}")


def percent(score: float) -> str:
    """Return a share with one digit, or that it is less or more than that shows."""
    if 0 < score < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= score < 1 else f"{score:.1%}"


def part_title(name: str) -> str:
    """Return what a part is called; of families that are not known here, its name in words."""
    return _PARTS.get(name, one_line(name).replace("_", " "))


def place(values: NDArray[np.float32]) -> str:
    """Return where the largest of some values ``[h, w]`` lies, in words: ``"at the top left"``."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    down = ("top", "", "bottom")[_third(int(row), values.shape[0])]
    across = ("left", "", "right")[_third(int(column), values.shape[1])]
    if not down and not across:
        return "in the centre"
    return f"at the {down} {across}".replace("  ", " ").strip() if down else f"on the {across}"


def sentence(item: Item) -> Words:
    """Return why an image has its class and not another one, in plain words.

    ``"7 rather than 9: it has “3 or 7” (+1.2) and lacks “9” (+0.9); for 9 speaks that it lacks “7” (-0.4)."``
    """
    explanation, contrast = item.explanation, item.explanation.contrast
    if contrast is None:
        words: Words = [Name(explanation.summary), "."]
    else:
        words = [Name(explanation.label), " rather than ", Name(contrast.label), *_reasons(contrast), "."]
    words += _certified(explanation.certificate)
    if not item.rejected:
        return words
    score = "" if item.reject_score is None else f" (reject score {item.reject_score:.3g})"
    return [f"Rejected, as the model is not sure enough{score}. Its best answer is ", *words]


def _certified(certificate: Certificate | None) -> Words:
    """Return within which radius the answer stays, if that is known and there is one."""
    radius = certificate.radius() if certificate is not None else 0.0
    return [f" Every embedding within {radius:.3g} (l2) of its own gets the same class."] if radius else []


def _reasons(contrast: Contrast) -> Words:
    facts = _facts(contrast.features)
    least = NEGLIGIBLE * max((abs(fact.value) for fact in facts), default=0.0)
    told = sorted((fact for fact in facts if abs(fact.value) > least), key=lambda fact: -abs(fact.value))
    ahead = [fact for fact in told if fact.value > 0][:_MOST_FOR]
    behind = [fact for fact in told if fact.value < 0][:_MOST_AGAINST]
    words: Words = [": ", *_clause(ahead)] if ahead else [": no single feature decides it"]
    return [*words, "; for ", Name(contrast.label), " speaks that ", *_clause(behind)] if behind else words


def _facts(leads: Iterable[FeatureLead]) -> list[FeatureLead]:
    """Return what features say of the image: to have "not X" is to lack X, and what both say of X is one fact."""
    facts: dict[tuple[str, bool | None], FeatureLead] = {}
    for lead in leads:
        title, is_opposite = without_not(lead.title)
        present = None if lead.present is None else lead.present != is_opposite
        known = facts.get((title, present))
        value = lead.value + (known.value if known else 0.0)
        name = title if lead.name else None
        facts[title, present] = FeatureLead(lead.index, name, value, present)
    return list(facts.values())


def _clause(facts: Sequence[FeatureLead]) -> Words:
    """Return facts as a clause: ``"it has A (+1.2) and B (+0.9), and lacks C (+0.6)"``."""
    kinds = {"has": [f for f in facts if f.present is not False], "lacks": [f for f in facts if f.present is False]}
    verbs = [[f"{verb} ", *_listed(some)] for verb, some in kinds.items() if some]
    return ["it ", *_joined(verbs, ", and " if len(facts) > 2 else " and ")]


def _listed(facts: Sequence[FeatureLead]) -> Words:
    quoted: list[Words] = [
        [*(["“", Name(fact.title), "”"] if fact.name else [fact.title]), f" ({number(fact.value)})"] for fact in facts
    ]
    return _joined([_joined(quoted[:-1], ", "), quoted[-1]], " and ") if len(quoted) > 1 else quoted[0]


def _joined(many: Sequence[Words], between: str) -> Words:
    words: Words = []
    for some in many:
        words += [between, *some] if words else some
    return words


def _third(index: int, size: int) -> int:
    """Return in which third of a side the middle of a cell lies, 0 to 2."""
    return int(3 * (index + 0.5) / size)
