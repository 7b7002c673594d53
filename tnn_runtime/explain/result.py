"""What an explanation is, whatever the head family."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tnn_runtime.errors import UsageError

__all__ = ["Explanation", "FeatureParts", "NearPrototype", "Part", "Parted"]


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


@dataclass(frozen=True)
class FeatureParts(Parted):
    """What one feature adds to the parts of an `Explanation`.

    Args:
        index: Its position among the features of the family: for a linear head the values of the embedding, for a
            Tversky head the rows of the feature bank.
        parts: Its share of each part, for a linear head of the one that it adds to.
    """

    index: int
    parts: tuple[Part, ...]


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


@dataclass(frozen=True)
class Explanation(Parted):
    """Why a class got its logit.

    `formula` tells how the parts make up the logit: for most families they add up to it, each with its sign, and with
    the bias. All values are plain: an explanation can be pickled, copied with ``dataclasses.replace``, and written as
    JSON after `to_dict` or ``dataclasses.asdict``.

    Args:
        label: Name of the class.
        index: Its position among the logits.
        score: Softmax probability, 0 to 1.
        logit: The logit that the parts make up.
        parts: The parts of the logit over all features.
        bias: What is added whatever the input is.
        features: The features with the largest parts, strongest first.
        prototypes: The prototypes that the input is most like, most similar first; none in families without any. They
            are the same for every class, but for what they contribute.
    """

    label: str
    index: int
    score: float
    logit: float
    parts: tuple[Part, ...]
    bias: float
    features: tuple[FeatureParts, ...]
    prototypes: tuple[NearPrototype, ...] = ()

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
        """Return all that ``repr`` shows, and the formula, as plain values for JSON."""
        return {**_shown(self), "formula": self.formula}

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
    """Return dataclasses as dictionaries of what their ``repr`` shows, and tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: _shown(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    return [_shown(item) for item in value] if isinstance(value, tuple) else value
