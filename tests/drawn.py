"""Explanations to be drawn, with all that an explanation may have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tnn_runtime import Contrast, Explanation, FeatureParts, Part
from tnn_runtime.drawing import Item
from tnn_runtime.explain.exemplars import Exemplars
from tnn_runtime.explain.result import FeatureLead, Maps

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def lead(index: int, name: str | None, value: float, present: bool | None = True) -> FeatureLead:
    return FeatureLead(index, name, value, present)


def explanation(
    label: str = "7",
    other: str = "9",
    leads: tuple[FeatureLead, ...] = (lead(0, "3 or 7", 1.25), lead(1, "9", 0.9, False), lead(2, None, -0.4)),
    *,
    maps: bool = False,
    **changes: Any,
) -> Explanation:
    """Return an explanation that compares a class with another one."""
    features = tuple(
        FeatureParts(one.index, (Part("common", 1, 2.0), Part("input_only", -1, 0.5 * one.index)), one.name)
        for one in leads
    )
    parts = (Part("common", 1, 6.0), Part("input_only", -1, 1.5))
    difference = sum(one.value for one in leads) + 0.35
    apart = (Part("common", 1, difference - 0.25), Part("input_only", -1, 0.0))
    contrast = Contrast(other, 1, 0.125, difference, apart, 0.25, leads, 0.1)
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 4
    listed = [np.full_like(values, one.value) if one.present is False else values for one in leads]
    places = np.array(listed, np.float32).reshape(-1, *values.shape)
    found = Maps(values, np.stack([values] * 2), places) if maps else None
    return Explanation(label, 0, 0.875, 4.5, parts, 0.25, features, contrast=contrast, maps=found, **changes)


def exemplars(label: str = "7", **changes: Any) -> Exemplars:
    """Return the exemplars of a feature."""
    images = np.random.default_rng(1).integers(0, 255, (2, 8, 8, 1), np.uint8)
    found = {"boxes": ((1, 2, 5, 6), (0, 0, 4, 4)), "shares": {label: 0.94, "9": 0.03}, "description": None}
    return Exemplars(images, (label, "9"), (3.25, 1.5), **{**found, **changes})


def item(label: str = "7", other: str = "9", **changes: Any) -> Item:
    """Return an image with its explanation, its maps and exemplars."""
    found = explanation(label, other, (lead(0, label, 1.25), lead(1, other, -0.5), lead(2, None, 0.5)), maps=True)
    rival = explanation(other, label, maps=True)
    assert rival.maps is not None
    turned = replace(rival.maps, logit=rival.maps.logit[::-1])
    again = replace(rival, index=1, score=0.125, maps=turned)
    faces = {0: exemplars(label), 1: exemplars(other, boxes=None, description=f"like {other}")}
    return Item([found, again], PICTURE, faces, **{"name": f"{label}/0.png", **changes})
