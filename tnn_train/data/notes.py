"""What people should know of the sets of a data set, as notes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tnn_runtime.images.files import listed
from tnn_train.data.sources import Found
from tnn_train.data.splits import Members

__all__ = ["CALLED", "Key", "tell_duplicates", "tell_missing"]

_logger = logging.getLogger(__name__)

CALLED = {"train": "training", "val": "validation", "test": "test"}
"""The sets, and what people call them."""

Key: TypeAlias = tuple[str, int]
"""An image: the set that it comes from, and its place there."""


def tell_missing(parts: Mapping[str, Members], class_names: Sequence[str]) -> None:
    """Tell which classes a set has no image of."""
    for part, members in parts.items():
        counts = np.bincount(members.labels, minlength=len(class_names))
        if missing := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
            _logger.warning(
                "the %s set has no image of %d of %d classes, and says nothing of them: %s",
                CALLED[part],
                len(missing),
                len(class_names),
                listed(missing),
            )


def tell_duplicates(found: Found, parts: Mapping[str, Members], digests: Mapping[Key, bytes]) -> None:
    """Tell which images, as the model sees them, are in two sets."""
    told = []
    is_shared_out = False
    seen: dict[bytes, tuple[str, Key]] = {}
    for name in CALLED:
        keys = [(parts[name].origin, place) for place in parts[name].places.tolist()]
        again: dict[str, list[tuple[Key, Key]]] = {}
        for key in (key for key in keys if key in digests):
            other, same = seen.setdefault(digests[key], (name, key))
            if other != name:
                again.setdefault(other, []).append((key, same))
        for other, pairs in again.items():
            files = [str(part.paths[place]) for origin, place in pairs[0] if (part := found.splits[origin]).paths]
            example = f" ({' and '.join(files)})" if files else ""
            told.append(f"{len(pairs)} of the {CALLED[name]} set are also in the {CALLED[other]} set{example}")
            is_shared_out |= any(ours[0] == theirs[0] for ours, theirs in pairs)
    if told:
        _logger.warning(
            "two sets hold the same images, pixel for pixel, so that the accuracy says less about new images: %s; "
            "remove them from one set%s",
            "; ".join(told),
            ", or put them into one group with --groups" if is_shared_out else "",
        )
