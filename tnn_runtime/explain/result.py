"""What an explanation is, whatever the head family."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_runtime.explain.certificate import Certificate

__all__ = [
    "Contrast",
    "Explanation",
    "FeatureLead",
    "FeatureParts",
    "Maps",
    "Named",
    "NearPrototype",
    "Part",
    "Parted",
]

_MOST_FOR, _MOST_AGAINST = 3, 2
_NEGLIGIBLE = 0.05
"""A summary leaves out what adds less than this share of what the strongest feature adds."""


@dataclass(frozen=True)
class Part:
    """One of the parts that a logit is made of.

    Args:
        name: What the family calls it.
        sign: 1 if it speaks for the class, -1 if it speaks against it.
        value: Its size, without the sign.
    """

    name: str
    sign: int
    value: float

    @property
    def signed(self) -> float:
        """The size with the sign; 0 has none."""
        return self.sign * self.value + 0.0


class Parted:
    """What has parts, and finds them by name."""

    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        """Return the part with that name.

        Raises:
            UsageError: If there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise UsageError(f"got the part {name!r}; expected one of {names}")


class Named:
    """What has a number, and a name where it means something."""

    index: int
    name: str | None

    @property
    def title(self) -> str:
        """The name, or ``"feature 7"`` where there is none."""
        return self.name or f"feature {self.index}"


@dataclass(frozen=True)
class FeatureParts(Parted, Named):
    """What one feature adds to the parts of an `Explanation`.

    Args:
        index: Its position among the features of the family: for a linear head the values of the embedding, for a
            Tversky head the rows of the feature bank, followed by their opposites if it has any.
        parts: Its share of each part, for a linear head of the one that it adds to.
        name: What it is called, where it is an attribute of the classes: ``"cat or dog"``, or ``"not cat or dog"``.
    """

    index: int
    parts: tuple[Part, ...]
    name: str | None = None


@dataclass(frozen=True)
class FeatureLead(Named):
    """What one feature does to the lead of a class over another one.

    Args:
        index: As for `FeatureParts`.
        name: As for `FeatureParts`.
        value: How much more it adds to the logit of the class than to that of the other one. What it adds is what the
            logit would lose without it.
        present: Whether the input has the feature; ``None`` in families whose features are had to a degree.
    """

    index: int
    name: str | None
    value: float
    present: bool | None = None


@dataclass(frozen=True)
class Contrast(Parted):
    """What sets the class of an `Explanation` apart from another one: where the difference of their logits comes from.

    Each entry is what the difference would lose without it. What adds to both logits alike cancels, and is left out.
    The difference is the sum of the parts, each with its sign, ``bias`` and ``interplay``; and it is the sum of the
    features, ``bias`` and ``rest``.

    Where logits are sums, these are the differences of their terms, and ``interplay`` is 0. In the ratio model of a
    Tversky head they are quotients, whose parts and features cannot be told apart wholly: what they do only together is
    ``interplay`` for the parts, and in ``rest`` for the features. In a logic head what features do does not add up,
    either, and ``rest`` is what the listed ones leave.

    Args:
        label: Name of the other class.
        index: Its position among the logits.
        score: Its softmax probability, 0 to 1.
        difference: The logit of the explained class minus that of this one.
        parts: What each part of the logits does to the difference.
        bias: The difference of what is added to both whatever the input is.
        features: The features that do most to the difference, strongest first.
        rest: What all other features do to it, and what features do only together.
        interplay: What the parts do only together.
        is_sum: Whether features do nothing only together.
    """

    label: str
    index: int
    score: float
    difference: float
    parts: tuple[Part, ...]
    bias: float
    features: tuple[FeatureLead, ...]
    rest: float
    interplay: float = 0.0
    is_sum: bool = True


@dataclass(frozen=True)
class NearPrototype:
    """A prototype that is like the input.

    Args:
        index: Its position among the prototypes.
        label: Name of the class that owns it; ``None`` where a linear map follows the prototypes.
        similarity: How like the input it is, by the family's measure. Tversky: 0 to 1 in the ratio model, unbounded in
            the contrast model.
        contribution: What it adds to the logit of the explained class. Over all prototypes, and with the bias, this is
            the logit. Where each class owns a prototype, those of other classes add nothing.
    """

    index: int
    label: str | None
    similarity: float
    contribution: float


@dataclass(frozen=True, eq=False, repr=False)
class Maps:
    """Where in the image an explanation comes from.

    Places are those of the last map of the backbone, row 0 at the top: each stands for the part of the image that lies
    there, and has seen some of what lies around it. The mean over all places of each map is the value that it explains.
    In a parts head the largest value of a feature's map is the value that it explains, and the other maps are sums of
    these maps.
    What the image has is spread in proportion to the map of the feature, and may be negative where the image speaks
    against the feature. What the image lacks lies nowhere: it is spread evenly.

    Args:
        logit: The logit without the bias, float32 ``[h, w]``.
        parts: The value of each of the parts, float32 ``[parts, h, w]``.
        features: For each of the listed features the sum of its parts with their signs, float32 ``[features, h, w]``.
    """

    logit: NDArray[np.float32]
    parts: NDArray[np.float32]
    features: NDArray[np.float32]

    def __repr__(self) -> str:
        """Tell how many maps there are, and how large they are."""
        height, width = self.logit.shape
        return f"<Maps of {height}x{width} places, {len(self.parts)} parts and {len(self.features)} features>"


@dataclass(frozen=True)
class Explanation(Parted):
    """Why a class got its logit.

    `formula` tells how the parts make up the logit: for most families they add up to it, each with its sign, and with
    the bias. All values but the maps are plain: an explanation can be pickled, copied with ``dataclasses.replace``, and
    written as JSON after `to_dict`.

    Args:
        label: Name of the class.
        index: Its position among the logits.
        score: Probability, 0 to 1, that of `Prediction`.
        logit: The logit that the parts make up.
        parts: The parts of the logit over all features.
        bias: What is added whatever the input is.
        features: The features with the largest parts, strongest first.
        prototypes: The prototypes that the input is most like, most similar first; none in families without any. They
            are the same for every class, but for what they contribute.
        contrast: What sets the class apart from another one: from the class that was asked for, and without one, or
            for that class itself, from the best of the others. ``None`` if there is no other class.
        maps: Where in the image all that comes from; ``None`` unless it was asked for.
        certificate: How far the embedding may move before the answer can change; ``None`` for classes that are not the
            answer, and in families that cannot tell.

    Attributes:
        absence: What `without` and the numbers of features are about, for people to read.
    """

    absence: ClassVar[str] = "without each feature"

    label: str
    index: int
    score: float
    logit: float
    parts: tuple[Part, ...]
    bias: float
    features: tuple[FeatureParts, ...]
    prototypes: tuple[NearPrototype, ...] = ()
    contrast: Contrast | None = None
    maps: Maps | None = None
    certificate: Certificate | None = None

    @property
    def rival(self) -> str | None:
        """The class that this one is compared with in `contrast`."""
        return self.contrast.label if self.contrast else None

    @property
    def leads(self) -> tuple[FeatureLead, ...]:
        """The features that set the class apart from its rival, strongest first: those of `contrast`."""
        return self.contrast.features if self.contrast else ()

    @property
    def summary(self) -> str:
        """The explanation as a sentence: which features speak for the class and against it, and for it over its rival.

        ``"cat: for it speak 'frog, cat or dog' (+3.1) and 'cat or dog' (+2); compared with dog, for it speaks 'cat'
        (+1.4), against it 'dog' (-0.9)"``. Each number is what the logit would lose without the feature.
        """
        added = [(feature.title, self.logit - self.without([feature.index])) for feature in self.features]
        clauses = [_clause(added), _clause([(lead.title, lead.value) for lead in self.leads])]
        if clauses[1]:
            clauses[1] = f"compared with {self.rival}, {clauses[1]}"
        text = "; ".join(filter(None, clauses))
        return f"{self.label}: {text}" if text else self.label

    @property
    def formula(self) -> str:
        """How the logit follows from the parts, for people to read: ``"supporting - opposing + bias"``."""
        terms = "".join(f" {'-' if part.sign < 0 else '+'} {part.name}" for part in self.parts)
        return f"{terms.removeprefix(' + ').lstrip()} + bias"

    def without(self, features: Iterable[int]) -> float:
        """Return what the logit would be if there were no such features; the embedding stays as it is.

        Where the parts add up to the logit, it moves by the parts of the features.

        Args:
            features: Indices of features that `features` lists.

        Raises:
            UsageError: If one of them is not listed.
        """
        return self.logit - sum(part.signed for place in self._places(features) for part in self.features[place].parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all that ``repr`` shows, and the properties, as plain values for JSON."""
        leads = _shown(self.leads)
        return {**_shown(self), "rival": self.rival, "leads": leads, "formula": self.formula, "summary": self.summary}

    def _places(self, indices: Iterable[int]) -> list[int]:
        """Return where `features` lists the features with these indices.

        Raises:
            UsageError: If one of them is not listed.
        """
        wanted, listed = set(indices), [feature.index for feature in self.features]
        if not wanted <= set(listed):
            raise UsageError(
                f"got the features {sorted(wanted)}; expected some of those that this explanation lists, "
                f"{sorted(listed)}: list more with a larger num_features"
            )
        return [place for place, index in enumerate(listed) if index in wanted]


def _shown(value: Any) -> Any:
    """Return dataclasses as dictionaries of what their ``repr`` shows, and tuples and arrays as lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: _shown(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_shown(item) for item in value] if isinstance(value, tuple) else value


def _clause(added: Sequence[tuple[str, float]]) -> str:
    """Return what speaks for a class and against it, from the titles of features and what they add; or nothing."""
    least = _NEGLIGIBLE * max((abs(value) for _, value in added), default=0.0)
    ordered = sorted((one for one in added if abs(one[1]) > least), key=lambda one: -abs(one[1]))
    sides = (
        ("for it", [one for one in ordered if one[1] > 0][:_MOST_FOR]),
        ("against it", [one for one in ordered if one[1] < 0][:_MOST_AGAINST]),
    )
    clauses = [
        f"{side} {'speaks ' if len(some) == 1 else 'speak '}{_listed([_quoted(*one) for one in some])}"
        for side, some in sides
        if some
    ]
    return ", ".join(clauses)


def _quoted(title: str, value: float) -> str:
    number = f"{value:+.0f}" if abs(value) >= 99.5 else f"{value:+.2g}"
    return f"'{title}' ({number})"


def _listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]
