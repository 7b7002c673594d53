"""Stratified splits of what a reader found."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.model_selection import train_test_split

from tnn_train.data.sources import Found, Labelled
from tnn_train.errors import DataError

__all__ = ["split"]

_HELD_OUT = 0.2


def split(found: Found, limit: int | None, seed: int) -> dict[str, Labelled]:
    """Cut the missing splits off the training set, and shorten all to ``limit``; the same seed gives the same sets.

    Raises:
        DataError: If there are too few images for every class to be on both sides of a cut.
    """
    splits = dict(found.splits)
    names = found.class_names

    def cut(part: str, size: int | float) -> Labelled:
        labels = splits[part].labels
        counts = Counter(labels.tolist())
        rarest = min(range(len(names)), key=lambda label: counts[label])
        wanted = size if isinstance(size, int) else round(size * len(labels))
        if counts[rarest] < 2 or not len(names) <= wanted <= len(labels) - len(names):
            raise DataError(
                f"{len(labels)} images of {len(names)} classes ({counts[rarest]} of {names[rarest]!r}) cannot be "
                "split so that every class is on both sides; use more images of each class, or another --limit"
            )
        kept, away = train_test_split(
            np.arange(len(labels)),
            train_size=len(labels) - wanted,
            test_size=wanted,
            stratify=labels,
            random_state=seed,
        )
        whole = splits[part]
        splits[part] = whole.take(np.sort(kept))
        return whole.take(np.sort(away))

    if "test" not in splits:
        splits["test"] = cut("train", _HELD_OUT)
    if limit is not None:
        for part in ("train", "test"):
            if len(splits[part].labels) > limit:
                splits[part] = cut(part, limit)
    if "val" not in splits:
        splits["val"] = cut("train", _HELD_OUT)
    return splits
