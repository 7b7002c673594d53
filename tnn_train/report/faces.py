"""What the features of a head look like, for a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tnn_runtime.explain.exemplars import Exemplars, Gallery
from tnn_train.report.pictures import FEW_PIXELS, image_url

__all__ = ["MOST_FACES", "faces"]

MOST_FACES = 60
"""How many features a report shows, at most."""

_MOST_SHARES = 3


def faces(gallery: Gallery, names: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the features that differ most between classes, each with its exemplars.

    Args:
        gallery: The exemplars.
        names: What explanations call each feature, ``None`` for those without a name; empty if none has one.
    """
    apart = np.argsort(-np.ptp(gallery.features.shares, axis=1), kind="stable")[:MOST_FACES]
    shown = np.sort(gallery.features.numbers[apart]).tolist()
    found = ((number, gallery.find("feature", number)) for number in shown)
    return [_face(number, names[number] if names else None, one) for number, one in found if one is not None]


def _face(number: int, name: str | None, exemplars: Exemplars) -> dict[str, Any]:
    most = sorted(exemplars.shares.items(), key=lambda one: -one[1])[:_MOST_SHARES]
    return {
        "title": f"#{number}" + (f" {name}" if name else ""),
        "about": exemplars.description or "Seen in " + ", ".join(f"{share:.0%} of “{label}”" for label, share in most),
        "pictures": [
            {
                "url": image_url(image),
                "coarse": max(image.shape) <= FEW_PIXELS,
                "label": label,
                "value": value,
                "box": None if exemplars.boxes is None else _percent(exemplars.boxes[place], image.shape[:2]),
            }
            for place, (image, label, value) in enumerate(
                zip(exemplars.images, exemplars.labels, exemplars.values, strict=True)
            )
        ],
    }


def _percent(box: tuple[int, int, int, int], size: tuple[int, ...]) -> dict[str, float]:
    """Return where a box is in a picture of ``size``, in percent of it."""
    (top, left, bottom, right), (height, width) = box, size
    return {
        "top": 100 * top / height,
        "left": 100 * left / width,
        "height": 100 * (bottom - top) / height,
        "width": 100 * (right - left) / width,
    }
