"""What the features of a Tversky head are called, where they are attributes that classes share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    attributes: Iterable[tuple[str | None, Sequence[int]]], class_names: Sequence[str], num_features: int
) -> tuple[str | None, ...]:
    """Return the names of the features of a head with opposite features, ``None`` for those that are no attribute.

    Attribute k is feature k; to be without it is feature ``num_features / 2 + k``.

    Args:
        attributes: Of each attribute the name that a person gave it, or ``None``, and the classes that have it.
        class_names: One name for each class.
        num_features: F, an even number.
    """
    names = [name or attribute_name([class_names[index] for index in classes]) for name, classes in attributes]
    others = [None] * (num_features // 2 - len(names))
    return (*names, *others, *(f"{_NOT}{name}" for name in names), *others)


def without_not(name: str) -> tuple[str, bool]:
    """Return what the name of a feature is about, and whether the feature is to be without it: ``("cat", True)``."""
    is_opposite = False
    while name.startswith(_NOT):
        name, is_opposite = name.removeprefix(_NOT), not is_opposite
    return name, is_opposite
