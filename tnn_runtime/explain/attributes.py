"""What the features of a Tversky head are called, where they are attributes that classes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["attribute_description", "attribute_name", "feature_names", "without_not"]

_MOST_NAMED = 3
_NOT = "not "


def attribute_name(classes: Sequence[str]) -> str:
    """Return what an attribute of these classes is called: ``"cat, dog or deer"``; beyond three, the rest is counted.

    Args:
        classes: The names of the classes that have it.
    """
    if len(classes) > _MOST_NAMED + 1:
        return f"{', '.join(classes[:_MOST_NAMED])} or {len(classes) - _MOST_NAMED} more"
    return " or ".join([", ".join(classes[:-1]), classes[-1]]) if len(classes) > 1 else "".join(classes)


def attribute_description(name: str | None, classes: Sequence[str]) -> str:
    """Return what a person calls an attribute, if anything, and its classes: ``"has wings: bird or airplane"``.

    Args:
        name: The name that a person gave it, or ``None``.
        classes: The names of the classes that have it.
    """
    return f"{name}: {attribute_name(classes)}" if name else attribute_name(classes)


def feature_names(
    attributes: Iterable[tuple[str | None, Sequence[int]]],
    class_names: Sequence[str],
    num_features: int,
    given: Mapping[int, str],
    *,
    has_opposites: bool,
) -> tuple[str | None, ...]:
    """Return the names of the features of a head, ``None`` for those without one.

    Where features have opposites, attribute k is feature k, and the opposite of feature k is feature
    ``num_features / 2 + k``: it is called "not" so, unless it was given a name of its own.

    Args:
        attributes: Of each attribute the name that a person gave it, or ``None``, and the classes that have it; of no
            meaning without opposites.
        class_names: One name for each class.
        num_features: F, an even number if there are opposites.
        given: The names that a person gave to features.
        has_opposites: Whether the second half of the features are the opposites of the first.
    """
    if not has_opposites:
        return tuple(given.get(index) for index in range(num_features))
    half = num_features // 2
    named = [name or attribute_name([class_names[index] for index in classes]) for name, classes in attributes]
    names = [given.get(k, named[k] if k < len(named) else None) for k in range(half)]
    opposites = (given.get(half + k, f"{_NOT}{name}" if name else None) for k, name in enumerate(names))
    return (*names, *opposites)


def without_not(name: str) -> tuple[str, bool]:
    """Return what the name of a feature is about, and whether the feature is to be without it: ``("cat", True)``."""
    is_opposite = False
    while name.startswith(_NOT):
        name, is_opposite = name.removeprefix(_NOT), not is_opposite
    return name, is_opposite
