"""What people call features that have no name of their own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FeatureName"]


@dataclass(frozen=True)
class FeatureName:
    """What a person calls a feature.

    Args:
        index: The feature, as explanations number it.
        name: Its name.
    """

    index: int
    name: str
