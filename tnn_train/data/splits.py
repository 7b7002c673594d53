"""The sets that a data set does not come with, cut off its training set; and a part of it, for a quick try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from tnn_train.data.config import HELD_OUT, DataConfig

__all__ = ["Members", "NoSplit", "split"]

_FEWEST = {"rest": (2, 1), "train": (1,), "val": (1, 0), "test": (1,)}
"""How many images of each class are to be left of a set by a limit, at best and at worst; the rest is split further."""

Indices = NDArray[np.int64]


class NoSplit(ValueError):
    """Images that cannot be split as they are to be."""


@dataclass(frozen=True)
class Members:
    """Some images of a set that a data set comes with.

    Args:
        origin: The name of that set.
        places: Where the images stand in it, int64 ``[N]``.
        labels: Their classes, int64 ``[N]``.
        groups: Numbers of groups that are not to be divided, int64 ``[N]``; each image is one where there are none.
    """

    origin: str
    places: Indices
    labels: Indices
    groups: Indices

    def take(self, indices: Indices) -> Members:
        """Return some of them, in the order in which they are found."""
        indices = np.sort(indices)
        return Members(self.origin, self.places[indices], self.labels[indices], self.groups[indices])


@dataclass(frozen=True)
class _Cut:
    """What is to be cut off some images.

    Args:
        count: How many images; more, if something is to be left and each class needs them.
        fewest: How many of each class at least, where it has them: the first number that the count suffices for.
        left: How many groups of each class are to be left, where there are enough.
    """

    count: int
    fewest: tuple[int, ...] = (1,)
    left: int = 0


_Draw = Callable[[Members, _Cut, int], Indices]
"""From images, what to cut and a seed to the indices of the images that are cut off, int64 ``[n]``."""


def split(given: Mapping[str, Members], config: DataConfig) -> dict[str, Members]:
    """Return the sets ``train``, ``val`` and ``test``; the same images and options give the same ones.

    The images of each class are shared out in the same proportion, by scikit-learn. Where this fails, or leaves a set
    without an image of some class, or where there are groups, each set gets its share of each class by itself, at least
    one image: first ``train``, then ``test``, then ``val``.

    Args:
        given: The sets that the data set comes with.
        config: The shares, the limit and the seed.

    Raises:
        NoSplit: If a set would be empty, or the limit is too small for one image of each class.
    """
    if all(len(np.unique(part.groups)) == len(part.groups) for part in given.values()):
        try:
            parts = _divide(given, config, _draw_stratified)
        except NoSplit:
            pass
        else:
            if _is_complete(given, parts):
                return parts
    return _divide(given, config, _draw_by_class)


def _divide(given: Mapping[str, Members], config: DataConfig, draw: _Draw) -> dict[str, Members]:
    parts = dict(given)
    share = 1.0

    def cut(part: str, what: _Cut) -> Members:
        """Return what is cut off a part, which keeps the rest."""
        whole = parts[part]
        away = draw(whole, what, config.seed)
        if len(away) == 0:
            raise NoSplit
        parts[part] = whole.take(np.setdiff1d(np.arange(len(whole.labels)), away))
        return whole.take(away)

    if "test" not in parts:
        held_out = HELD_OUT if config.test_share is None else config.test_share
        share = 1 - held_out
        parts["test"] = cut("train", _Cut(round(held_out * len(parts["train"].labels)), left=1 + ("val" not in parts)))
    for part, count in _limits(parts, config.limit).items():
        parts[part] = cut(part, _Cut(count, fewest=_FEWEST["rest" if part == "train" and "val" not in parts else part]))
    if "val" not in parts:
        held_out = HELD_OUT if config.val_share is None else config.val_share / share
        parts["val"] = cut("train", _Cut(round(held_out * len(parts["train"].labels)), left=1))
    return parts


def _limits(parts: Mapping[str, Members], limit: int | None) -> dict[str, int]:
    """Return how many images are to be left of the parts that are too large."""
    if limit is None:
        return {}
    sizes = {name: len(part.labels) for name, part in parts.items()}
    wanted = {"train": limit, "test": limit}
    if "val" in sizes:
        share = round(limit * sizes["train"] / (sizes["train"] + sizes["val"]))
        wanted["train"] = min(limit - 1, max(share, len(np.unique(parts["train"].labels))))
        wanted["val"] = limit - wanted["train"]
    return {name: count for name, count in wanted.items() if sizes[name] > count}


def _is_complete(given: Mapping[str, Members], parts: Mapping[str, Members]) -> bool:
    """Return whether each part has an image of each class that there was for it."""
    return all(
        set(np.unique(given.get(name, given["train"]).labels)) == set(np.unique(part.labels))
        for name, part in parts.items()
    )


def _draw_stratified(members: Members, cut: _Cut, seed: int) -> Indices:
    total = len(members.labels)
    counts = np.unique(members.labels, return_counts=True)[1]
    if total == 0 or counts.min() < 2 or not len(counts) <= cut.count <= total - len(counts):
        raise NoSplit
    away: Indices
    _, away = train_test_split(
        np.arange(total),
        train_size=total - cut.count,
        test_size=cut.count,
        stratify=members.labels,
        random_state=seed,
    )
    return away


def _draw_by_class(members: Members, cut: _Cut, seed: int) -> Indices:
    """Draw whole groups, class by class, those of the fewest groups first; what a class leaves stays where it is.

    Where nothing is to be left, the images are not on two sides, and groups may be divided.
    """
    random = np.random.default_rng(seed)
    units = members.groups if cut.left else members.places
    classes, counts = np.unique(members.labels, return_counts=True)
    found = [np.unique(units[members.labels == label], return_counts=True) for label in classes]
    left = [min(cut.left, max(1, len(groups) - 1)) if cut.left else 0 for groups, _ in found]
    quotas = _quotas(counts, np.maximum(counts - left, 0), cut)
    is_away: dict[int, bool] = {}
    for place in sorted(range(len(classes)), key=lambda place: len(found[place][0])):
        order = random.permutation(len(found[place][0]))
        sizes = dict(zip(*(values[order].tolist() for values in found[place]), strict=True))
        kept = sum(not is_away.get(group, True) for group in sizes)
        away = sum(size for group, size in sizes.items() if is_away.get(group))
        free = [group for group in sizes if group not in is_away]
        to_stay = set(sorted(free, key=sizes.__getitem__, reverse=True)[: max(0, left[place] - kept)])
        chosen = _fill({group: sizes[group] for group in free if group not in to_stay}, int(quotas[place]) - away)
        is_away |= {group: group in chosen for group in free}
    return np.flatnonzero([is_away[unit] for unit in units.tolist()])


def _quotas(counts: Indices, most: Indices, cut: _Cut) -> Indices:
    """Return how many images of each class to draw: in proportion, within what there is, and ``cut.count`` in all."""
    choices = [np.minimum(fewest, most) for fewest in cut.fewest]
    quotas = next((least for least in choices if cut.left or least.sum() <= cut.count), None)
    if quotas is None:
        raise NoSplit
    room = most - quotas
    rest = np.clip(cut.count - quotas.sum(), 0, room.sum())
    exact = rest * room / max(1, room.sum())
    quotas = quotas + exact.astype(np.int64)
    quotas[np.argsort(exact.astype(np.int64) - exact, kind="stable")[: max(0, cut.count - quotas.sum())]] += 1
    drawn: Indices = np.minimum(quotas, most)
    return drawn


def _fill(groups: Mapping[int, int], wanted: int) -> set[int]:
    """Return groups, given with their sizes, of so many images at most; or the smallest one, if each is larger."""
    chosen: set[int] = set()
    for group, size in groups.items():
        if size <= wanted:
            chosen.add(group)
            wanted -= size
    return chosen or ({min(groups, key=groups.__getitem__)} if groups and wanted > 0 else set())
