"""NABirds: 555 classes of North American birds, in the layout of the official archive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from tnn_runtime.images.files import broken
from tnn_runtime.images.preprocess import ImageSource, open_image
from tnn_runtime.text import printable
from tnn_train.data.config import DataConfig
from tnn_train.data.sources import Found, Labelled, LazyImages, read_headers, usual_size
from tnn_train.errors import DataError
from tnn_train.text_files import read_lines

__all__ = ["read_nabirds"]

_IMAGES, _CLASSES, _BOXES = "images.txt", "classes.txt", "bounding_boxes.txt"
_LABELS, _SPLITS = "image_class_labels.txt", "train_test_split.txt"

Box: TypeAlias = tuple[int, int, int, int]
"""Left, upper, right and lower edge in stored pixels, as Pillow counts them."""

T = TypeVar("T")


def read_nabirds(config: DataConfig) -> Found:
    """Read NABirds from ``root/nabirds`` or ``root``; every header is read.

    The classes of the archive are a hierarchy: those count that are the label of an image, in the order of their ids.

    Raises:
        DataError: If a file of the archive is missing, or one of its lines is wrong; the message names both.
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
    headers = read_headers(list(files.values()), "nabirds")
    usable = {image: path for image, path in files.items() if path in headers.sizes}
    paths = list(usable.values())
    sizes = [headers.sizes[path] for path in paths]
    sources: Sequence[ImageSource] = paths
    if config.crop_to_boxes:
        corners = _table(folder / _BOXES, "IMAGE X Y WIDTH HEIGHT in whole pixels", _box, files)
        boxes = [_clip(corners[image], size, files[image]) for image, size in zip(usable, sizes, strict=True)]
        sizes = [(right - left, lower - upper) for left, upper, right, lower in boxes]
        sources = LazyImages(_Crops(paths, boxes), range(len(paths)))
    used = sorted(set(labels.values()), key=lambda class_id: (len(class_id), class_id))
    _refuse_namesakes(folder / _CLASSES, {class_id: names[class_id] for class_id in used})
    places = {class_id: place for place, class_id in enumerate(used)}
    birds = Labelled(sources, np.array([places[labels[image]] for image in usable], np.int64), paths)
    side = np.array([sides[image] for image in usable], np.str_)
    splits = {name: birds.take(np.flatnonzero(side == name)) for name in ("train", "test")}
    if len(set(sides.values())) < 2:
        raise DataError(f"{folder / _SPLITS} has images of one set only; expected training and test images")
    return Found(splits, tuple(names[class_id] for class_id in used), 3, usual_size(sizes), headers.unusable)


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
                raise broken(printable(str(path)), error) from error


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
    """Read lines of an id and something else; blank lines are left out.

    Args:
        path: The file.
        expected: What a line looks like.
        convert: Makes a value of what follows the id; ``None`` or a `ValueError` if it is no such thing.
        images: The ids that the lines must have, each once.
    """
    lines = read_lines(path, f"lines of {expected}; unpack the archive of NABirds again", DataError)
    if not lines:
        raise DataError(f"{path} cannot be read (it is empty); expected lines of {expected}; unpack the archive again")
    table: dict[str, T] = {}
    for number, line in lines:
        try:
            key, rest = line.split(maxsplit=1)
            value = convert(rest)
        except ValueError:
            value = None
        if value is None:
            raise DataError(f"{path}, line {number}: got {line[:80]!r}; expected {expected}")
        if key in table or (images is not None and key not in images):
            why = "once only" if key in table else f"an image of {_IMAGES}"
            raise DataError(f"{path}, line {number}: got {key!r}; expected {why}")
        table[key] = value
    if missing := next((image for image in images or () if image not in table), None):
        raise DataError(f"{path} has no line for {missing}; expected lines of {expected}, one for each")
    return table


def _refuse_namesakes(path: Path, names: dict[str, str]) -> None:
    """Make sure that no two classes have the same name."""
    ids: dict[str, str] = {}
    for class_id, name in names.items():
        if name in ids:
            raise DataError(
                f"{path} calls both class {ids[name]} and class {class_id} {name!r}; expected another name for each "
                "class that is the label of an image: change one of the two lines"
            )
        ids[name] = class_id


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
