"""Folders of images as people lay them out: one subfolder for each class, which may lie in one for each split."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tnn_runtime.errors import InputError
from tnn_runtime.images.files import listed
from tnn_runtime.images.limits import FORMATS
from tnn_runtime.images.reading import refuse_unusable
from tnn_runtime.images.walk import Folder, read_tree
from tnn_runtime.text import SEPARATOR, why_not_utf8

__all__ = [
    "SPLITS",
    "TRAIN",
    "ImageFolder",
    "Part",
    "alike_names",
    "find_images",
    "has_image_name",
    "match_names",
    "read_image_folder",
]

_LOG = logging.getLogger(__name__)

TRAIN = "train"

SPLITS = {
    TRAIN: ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""The splits of a data set, each with the names that its folder may have, in capitals or not."""

_SPLIT_OF = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
_EXPECTED = "expected train, test and optionally val, or one subfolder of images for each class"


@dataclass(frozen=True)
class Part:
    """The images of one split.

    Args:
        folder: Where they lie.
        classes: The files below each of its folders, by the names of these.
        beside: The files that lie beside these folders, in no class.
    """

    folder: Path
    classes: Mapping[str, Sequence[Path]]
    beside: Sequence[Path]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as it is laid out.

    Args:
        folder: Where it is.
        parts: The images by their splits, keys of `SPLITS`; all are in ``train`` where there are no splits.
        beside: The files that lie beside the folders of the splits.
        unusable: What is wrong with each thing in it that can be neither read nor followed.
        trouble: Why the names of its folders do not tell the classes; empty if they do.
    """

    folder: Path
    parts: Mapping[str, Part]
    beside: Sequence[Path]
    unusable: Mapping[Path, str]
    trouble: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the class folders in sorted order, as torchvision's ``ImageFolder`` counts them.

        Raises:
            InputError: If they do not tell the classes, or one is not UTF-8.
        """
        if self.trouble:
            raise InputError(self.trouble)
        told = [self.parts[TRAIN]] if TRAIN in self.parts else list(self.parts.values())
        for part in told:
            for name in part.classes:
                if why := why_not_utf8(part.folder / name):
                    raise InputError(why)
        return tuple(sorted({name for part in told for name in part.classes}))

    def files(self, *splits: str) -> list[tuple[Path, str]]:
        """Return the files of some splits in sorted order, each with the name of its class folder, "" if in none.

        Of what lies beside class folders, only files with the names of images are returned.
        """
        chosen = [self.parts[split] for split in splits]
        return sorted(
            [
                *((path, name) for part in chosen for name, paths in part.classes.items() for path in paths),
                *((path, "") for part in chosen for path in part.beside if not part.classes or has_image_name(path)),
            ]
        )


def read_image_folder(folder: Path, *, nested: bool = False) -> ImageFolder:
    """Read how a folder of images is laid out; no image is opened.

    Folders with the names of `SPLITS` are splits if nothing else lies beside them, if both a training and another split
    are there, or if one of them holds folders and no images. Else they are classes, and a note says so.

    Args:
        folder: The folder.
        nested: Whether folders in folders are classes of their own, named by their paths, such as ``animal/cat``; else
            the images below a folder, however deep, are of one class.
    """
    root, unusable = read_tree(folder)
    named = {name: split for name in root.folders if (split := _SPLIT_OF.get(name.casefold()))}
    others = [name for name in root.folders if name not in named]
    found = set(named.values())
    is_split = bool(named) and (
        not others or (TRAIN in found and len(found) > 1) or any(_is_outer(root.folders[name]) for name in named)
    )
    if is_split:
        trouble = _trouble_of_splits(root, named, others)
    else:
        trouble = _trouble_of_nested(root) if nested else _trouble_of_classes(root)
    part_of = _nested_part if nested else _flat_part
    if is_split and not trouble:
        if nested:
            trouble = next(filter(None, (_trouble_of_nested(root.folders[name]) for name in named)), "")
        parts = {split: part_of(root.folders[name]) for split in SPLITS for name in named if named[name] == split}
        return ImageFolder(folder, parts, root.files, unusable, trouble)
    if named and not trouble:
        _LOG.warning(
            "%s has the name of a split, but counts as a class: it holds images itself, and others lie beside it",
            folder / next(iter(named)),
        )
    return ImageFolder(folder, {TRAIN: part_of(root)}, (), unusable, trouble)


def find_images(folder: Path) -> list[Path]:
    """Return every file below a folder in sorted order; names with a dot in front, and clutter, are left out.

    Raises:
        InputError: If something there can be neither read nor followed.
    """
    root, unusable = read_tree(folder)
    refuse_unusable(unusable, len(root.below) + len(unusable))
    return root.below


def has_image_name(path: Path) -> bool:
    """Return whether a file has the name of an image that can be decoded."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def match_names(names: Collection[str], known: Sequence[str]) -> dict[str, int]:
    """Return for names of folders which of the known classes they are; those that are none are left out.

    A name that is no class is taken for the only one that differs from it in nothing but capitals and how accents are
    encoded, unless there is another folder of that class.

    Args:
        names: The names of folders.
        known: The names of the classes.
    """
    places = {name: place for place, name in enumerate(known)}
    matched = {name: places[name] for name in names if name in places}
    alike = Counter(map(_folded, known)) + Counter(map(_folded, set(names) - set(matched)))
    folded = {_folded(name): place for name, place in places.items() if name not in matched}
    for name in names:
        key = _folded(name)
        if name not in matched and key in folded and alike[key] == 2:
            matched[name] = folded[key]
    return matched


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names that differ in nothing but capitals and how accents are encoded, those of one spelling together.

    Args:
        names: The names of folders.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(_folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).strip()


def _flat_part(folder: Folder) -> Part:
    return Part(folder.path, {name: inner.below for name, inner in folder.folders.items()}, folder.files)


def _nested_part(folder: Folder) -> Part:
    return Part(folder.path, {name: inner.below for name, inner in _innermost(folder)}, folder.files)


def _innermost(folder: Folder, above: str = "") -> Iterator[tuple[str, Folder]]:
    """Yield the folders below that hold no folders, each with its path."""
    for name, inner in folder.folders.items():
        if inner.folders:
            yield from _innermost(inner, f"{above}{name}{SEPARATOR}")
        else:
            yield f"{above}{name}", inner


def _is_outer(folder: Folder) -> bool:
    """Return whether a folder holds folders, and no images beside them."""
    return bool(folder.folders) and not any(map(has_image_name, folder.files))


def _unwrapped(folder: Folder) -> Folder:
    """Return the first folder inside that holds more than one folder, or images."""
    while _is_outer(folder) and len(folder.folders) == 1:
        (folder,) = folder.folders.values()
    return folder


def _trouble_of_splits(root: Folder, named: Mapping[str, str], others: Sequence[str]) -> str:
    for split, aliases in SPLITS.items():
        same = [name for name in named if named[name] == split]
        if len(same) > 1:
            return (
                f"{root.path} has {' and '.join(same)}, which both mean {split} ({', '.join(aliases)} are one); put "
                "their images together, or take one of them away"
            )
    if not others:
        return ""
    beside = next((name for name in named if named[name] == TRAIN), next(iter(named)))
    strange = listed(others)
    if TRAIN in named.values():
        return (
            f"{root.path} has {strange} beside {beside}; {_EXPECTED}: move {strange} away, or give "
            f"{root.path / beside} alone"
        )
    return f"{root.path} has {strange} beside {beside}; {_EXPECTED}: move the class folders into {root.path / TRAIN}"


def _trouble_of_nested(folder: Folder) -> str:
    """Return what is wrong with folders in folders that are to be classes: images must not lie beside them."""
    for inner in folder.folders.values():
        if inner.folders and (images := [path for path in inner.files if has_image_name(path)]):
            return (
                f"{inner.path} holds folders and {len(images)} images beside them; with nested classes it is either a "
                f"class or a parent: move these images into a folder of their own, such as {inner.path / 'other'}"
            )
        if trouble := _trouble_of_nested(inner):
            return trouble
    return ""


def _trouble_of_classes(root: Folder) -> str:
    inner = _unwrapped(root)
    if inner is not root and _is_outer(inner):
        return (
            f"{root.path} holds one folder only, which cannot be all classes; give {inner.path}, which has "
            f"{listed(list(inner.folders))}"
        )
    outer = [folder for folder in map(_unwrapped, root.folders.values()) if _is_outer(folder)]
    counts = Counter(name for folder in outer for name in folder.folders)
    same = [name for name, count in counts.items() if count > 1]
    if len(same) < 2:
        return ""
    return (
        f"the folders of {root.path}, {listed(list(root.folders))}, hold folders of the same names, {listed(same)}; "
        "if they are parts of one data set, name them train, val and test; if they are classes, put their images "
        "into them without folders between"
    )
