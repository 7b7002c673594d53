"""From what a reader found to the three sets: split, every image of them decoded once, and told what is wrong."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_runtime.errors import InputError
from tnn_runtime.images.preprocess import Preprocessing, Traits
from tnn_runtime.images.reading import list_unusable, read_each, refuse_unusable, tell_traits
from tnn_runtime.text import printable
from tnn_train.data.config import DataConfig
from tnn_train.data.groups import read_groups
from tnn_train.data.images import ImageSet
from tnn_train.data.notes import CALLED, Key, tell_duplicates, tell_missing
from tnn_train.data.sources import Found
from tnn_train.data.splits import Members, NoSplit, split
from tnn_train.errors import DataError
from tnn_train.messages import is_first

__all__ = ["read_sets"]

_logger = logging.getLogger(__name__)

_SHARES = {"test": "test_share", "val": "val_share"}
_HINT = ", or pass --skip-unusable (skip_unusable=True) to go on without such files"
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class _Decoded:
    """What decoding all images gave.

    Args:
        pixels: Of each set, uint8 ``[N, H, W, C]``; ``None`` where they are not kept.
        seen: Of each image a digest of its pixels, and what its file told.
        unusable: What is wrong with the images that cannot be decoded.
    """

    pixels: dict[str, NDArray[np.uint8] | None]
    seen: dict[Key, tuple[bytes, Traits]]
    unusable: dict[Key, InputError]


def read_sets(
    found: Found, config: DataConfig, preprocessing: Preprocessing, cache_bytes: int
) -> tuple[list[ImageSet], dict[Path, str]]:
    """Split a data set, and decode the images of all sets, by threads: one message lists all that cannot be used.

    Classes that a set lacks, images that are in two sets, and what `tell_traits` has of them are named in notes.

    Args:
        found: The data set.
        config: Shares, limit, seed and groups, and whether to go on without what cannot be used.
        preprocessing: How a source becomes an array.
        cache_bytes: Up to which size in bytes the decoded images are kept.

    Returns:
        The training, validation and test set, and what is wrong with each file that was left out.

    Raises:
        DataError: If there are too few images to split.
        InputError: If files cannot be used; the message lists them.
    """
    unusable = dict(found.unusable)
    total = len(unusable) + sum(len(part.labels) for part in found.splits.values())
    members = _members(found, config)
    done: dict[Key, tuple[bytes, Traits]] = {}
    while True:
        try:
            parts = _split(found, members, config)
        except DataError:
            if not config.skip_unusable:
                refuse_unusable(unusable, total, _HINT)
            raise
        # Where several processes train, the first one can tell for all of them whether the images can be decoded.
        is_needed = config.skip_unusable or is_first()
        decoded = _decode(found, parts, preprocessing, cache_bytes, done, is_needed=is_needed)
        unusable |= {found.splits[part].paths[place]: str(error) for (part, place), error in decoded.unusable.items()}
        if not config.skip_unusable:
            refuse_unusable(unusable, total, _HINT)
        if not decoded.unusable:
            break
        done = decoded.seen
        members = {name: _without(part, decoded.unusable) for name, part in members.items()}
    if unusable:
        _logger.warning(
            "%d of %d files cannot be used and are left out: %s", len(unusable), total, list_unusable(unusable)
        )
    tell_missing(parts, found.class_names)
    tell_duplicates(found, parts, {key: digest for key, (digest, _) in decoded.seen.items()})
    keys = list(decoded.seen)
    tell_traits([traits for _, traits in decoded.seen.values()], lambda place: _called(found, keys[place]))
    taken = {name: found.splits[part.origin].take(part.places) for name, part in parts.items()}
    sets = [ImageSet(taken[name].sources, taken[name].labels, preprocessing, decoded.pixels[name]) for name in CALLED]
    return sets, dict(sorted(unusable.items()))


def _members(found: Found, config: DataConfig) -> dict[str, Members]:
    """Return all images of the sets that a data set comes with, in their groups."""
    for name, option in _SHARES.items():
        if name in found.splits and getattr(config, option) is not None:
            _logger.warning(
                "--%s has no effect: %s comes with a %s set",
                option.replace("_", "-"),
                config.source,
                CALLED[name],
            )
    groups = None
    if config.groups is not None:
        folder = Path(config.source if Path(config.source).is_dir() else config.root)
        groups = read_groups(Path(config.groups), folder, found.splits)
    members = {}
    for name, part in found.splits.items():
        places = np.arange(len(part.labels))
        members[name] = Members(name, places, part.labels, places if groups is None else groups[name])
    return members


def _without(members: Members, places: Mapping[Key, object]) -> Members:
    """Return the images that do not stand in the places named."""
    away = [place for origin, place in places if origin == members.origin]
    return members.take(np.flatnonzero(~np.isin(members.places, away)))


def _split(found: Found, members: Mapping[str, Members], config: DataConfig) -> dict[str, Members]:
    names = found.class_names
    counts = np.bincount(members["train"].labels, minlength=len(names))
    rarest = int(counts.argmin())
    if counts[rarest] == 0:
        raise DataError(
            f"no image of the class {names[rarest]!r} can be used to train on; add some, or remove the class"
        )
    for name, part in members.items():
        if len(part.labels) == 0:
            raise DataError(f"the {CALLED[name]} set has no images that can be used; add some, or remove the set")
    try:
        return split(members, config)
    except NoSplit as error:
        groups = "" if config.groups is None else ", or smaller groups"
        raise DataError(
            f"{counts.sum()} images of {len(names)} classes ({counts[rarest]} of {names[rarest]!r}) cannot be "
            "split so that every class is on both sides; use more images of each class, or another --limit" + groups
        ) from error


def _decode(
    found: Found,
    parts: Mapping[str, Members],
    preprocessing: Preprocessing,
    cache_bytes: int,
    done: Mapping[Key, tuple[bytes, Traits]],
    *,
    is_needed: bool,
) -> _Decoded:
    """Decode all images: to keep them if they fit, and else, if that is needed, to see whether they can be."""
    keys = [(part.origin, place) for part in parts.values() for place in part.places.tolist()]
    is_kept = len(keys) * int(np.prod(preprocessing.shape)) <= cache_bytes
    pixels = np.empty((len(keys) if is_kept else 0, *preprocessing.shape), np.uint8)

    def decode(index: int) -> tuple[bytes, Traits]:
        origin, place = keys[index]
        if not is_kept and keys[index] in done:
            return done[keys[index]]
        image, traits = preprocessing.decode(found.splits[origin].sources[place])
        if is_kept:
            pixels[index] = image
        return hashlib.blake2b(image.tobytes(), digest_size=_DIGEST_BYTES).digest(), traits

    seen: dict[Key, tuple[bytes, Traits]] = {}
    unusable: dict[Key, InputError] = {}
    if is_kept or is_needed:
        results = tqdm(read_each(decode, len(keys)), "decoding", len(keys), unit="image", disable=None, delay=1)
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, InputError):
                unusable[key] = result
            else:
                seen[key] = result
    ends = np.cumsum([len(part.places) for part in parts.values()])
    views = [part if is_kept else None for part in np.split(pixels, ends[:-1])]
    return _Decoded(dict(zip(parts, views, strict=True)), seen, unusable)


def _called(found: Found, key: Key) -> str:
    origin, place = key
    paths = found.splits[origin].paths
    return printable(str(paths[place])) if paths else f"image {place} of the {CALLED[origin]} set"
