"""NABirds: 555 classes of North American birds, in the layout of the official archive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from tnn_runtime.errors import InputError
from tnn_runtime.images.preprocess import ImageSource, open_image
from tnn_train.data.config import DataConfig
from tnn_train.data.sources import Found, Labelled, LazyImages, check_headers, usual_size
from tnn_train.errors import DataError
from tnn_train.fields import repeated

__all__ = ["read_nabirds"]

_IMAGES, _CLASSES, _BOXES = "images.txt", "classes.txt", "bounding_boxes.txt"
_LABELS, _SPLITS = "image_class_labels.txt", "train_test_split.txt"

Box: TypeAlias = tuple[int, int, int, int]
"""Left, upper, right and lower edge in stored pixels, as Pillow counts them."""

T = TypeVar("T")


def read_nabirds(config: DataConfig) -> Found:
    """Read NABirds from ``root/nabirds`` or ``root``; every header is checked.

    The classes of the archive are a hierarchy: those count that are the label of an image, in the order of their ids.

    Raises:
        DataError: If a file of the archive is missing, or one of its lines is wrong; the message names both.
        InputError: If an image is missing or unusable.
    """
    folder = _find(Path(config.root))
    files = _table(folder / _IMAGES, "IMAGE PATH", lambda text: folder / "images" / text)
    names = _table(folder / _CLASSES, "CLASS NAME", str)
    labels = _table(
        folder / _LABELS,
        f"IMAGE CLASS with a class of {_CLASSES}",
        lambda class_id: class_id if class_id in names else None,
        files,
    )
    sides = _table(folder / _SPLITS, "IMAGE 1 (training) or IMAGE 0 (test)", {"1": "train", "0": "test"}.get, files)
    paths = list(files.values())
    sizes = check_headers(paths, "nabirds")
    sources: Sequence[ImageSource] = paths
    if config.crop_to_boxes:
        corners = _table(folder / _BOXES, "IMAGE X Y WIDTH HEIGHT in whole pixels", _box, files)
        boxes = [_clip(corners[image], size, files[image]) for image, size in zip(files, sizes, strict=True)]
        sizes = [(right - left, lower - upper) for left, upper, right, lower in boxes]
        sources = LazyImages(_Crops(paths, boxes), range(len(paths)))
    used = sorted(set(labels.values()), key=lambda class_id: (len(class_id), class_id))
    if (twice := repeated(names[class_id] for class_id in used)) is not None:
        ids = [class_id for class_id in used if names[class_id] == twice]
        raise DataError(
            f"{folder / _CLASSES}: the classes {' and '.join(ids)} are called {twice!r}; expected a name of its own "
            "for each that has images"
        )
    places = {class_id: place for place, class_id in enumerate(used)}
    birds = Labelled(sources, np.array([places[labels[image]] for image in files]))
    side = np.array([sides[image] for image in files])
    splits = {name: birds.take(np.flatnonzero(side == name)) for name in ("train", "test")}
    if not all(len(part.labels) for part in splits.values()):
        raise DataError(f"{folder / _SPLITS} has images of one set only; expected training and test images")
    return Found(splits, tuple(names[class_id] for class_id in used), channels=3, image_size=usual_size(sizes))


@dataclass(frozen=True)
class _Crops:
    """The part in the box of each image, by number."""

    paths: Sequence[Path]
    boxes: Sequence[Box]

    def __call__(self, number: int) -> Image.Image:
        path = self.paths[number]
        with open_image(path) as image:
            try:
                return image.crop(self.boxes[number])
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{path} cannot be decoded ({error}); replace or remove it") from error


def _find(root: Path) -> Path:
    for folder in (root / "nabirds", root):
        if (folder / _IMAGES).is_file():
            return folder
    raise DataError(
        f"NABirds cannot be read under {root} (neither it nor {root / 'nabirds'} has {_IMAGES}); unpack the archive "
        "from dl.allaboutbirds.org/nabirds, and pass --data-root FOLDER"
    )


def _table(
    path: Path, expected: str, convert: Callable[[str], T | None], images: Collection[str] | None = None
) -> dict[str, T]:
    """Read lines of an id and something else.

    Args:
        path: The file.
        expected: What a line looks like.
        convert: Makes a value of what follows the id; ``None`` or a `ValueError` if it is no such thing.
        images: The ids that the lines must have, each once.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); unpack the archive of NABirds again") from error
    table: dict[str, T] = {}
    for number, line in enumerate(lines, 1):
        try:
            key, rest = line.strip().split(maxsplit=1)
            value = convert(rest)
        except ValueError:
            value = None
        if value is None:
            raise DataError(f"{path}, line {number}: got {line[:80]!r}; expected {expected}")
        if key in table or (images is not None and key not in images):
            why = "once only" if key in table else f"an image of {_IMAGES}"
            raise DataError(f"{path}, line {number}: got {key!r}; expected {why}")
        table[key] = value
    if not table or (images is not None and len(table) < len(images)):
        missing = next((image for image in images or () if image not in table), "anything")
        raise DataError(f"{path} has no line for {missing}; expected lines of {expected}, one for each")
    return table


def _box(text: str) -> Box:
    left, upper, width, height = map(int, text.split())
    return left, upper, left + width, upper + height


def _clip(box: Box, size: tuple[int, int], path: Path) -> Box:
    left, upper, right, lower = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    if left >= right or upper >= lower:
        raise DataError(
            f"{_BOXES}: the box of {path} is {box[2] - box[0]}x{box[3] - box[1]} pixels at ({box[0]}, {box[1]}); "
            f"expected one within the {size[0]}x{size[1]} pixels of the image"
        )
    return left, upper, right, lower
