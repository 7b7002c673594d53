"""From a data set's name or an image folder to three stratified sets of uint8 images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from tnn_runtime.errors import UsageError
from tnn_runtime.preprocess import ImageSource, Preprocessing, find_images, open_image
from tnn_train.errors import DataError

__all__ = ["DATASETS", "ImageData", "ImageSet", "load_data"]

CACHE_BYTES = 1 << 30
"""Decoded sets up to this size are kept in memory, decoded once before training starts."""

_SPLITS = ("train", "val", "test")
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "eval"}
_MEASURED_IMAGES = 2000

_Labelled: TypeAlias = tuple[Sequence[ImageSource], NDArray[np.int64]]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split; an item is (uint8 ``[H, W, C]``, label).

    Args:
        sources: The images as they were found.
        labels: Class indices, int64 ``[N]``.
        preprocessing: How a source becomes an array.
        pixels: The decoded images ``[N, H, W, C]``; without them, sources are decoded when they are needed.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        pixels: NDArray[np.uint8] | None = None,
    ) -> None:
        self.sources = sources
        self.labels = labels
        self.preprocessing = preprocessing
        self.pixels = pixels
        self._augment: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.tensor(self.decoded(index))
        if self._augment is not None:
            image = self._augment(image.permute(2, 0, 1)).permute(1, 2, 0)
        return image, int(self.labels[index])

    def decoded(self, index: int) -> NDArray[np.uint8]:
        """Return one image as the model sees it, uint8 ``[H, W, C]``."""
        return self.preprocessing(self.sources[index]) if self.pixels is None else self.pixels[index]

    def augmented(self, name: str) -> ImageSet:
        """Return the same images with random changes: a name that `tnn_train.TrainConfig` knows."""
        other = ImageSet(self.sources, self.labels, self.preprocessing, self.pixels)
        height, width, _ = self.preprocessing.shape
        steps: list[Callable[[Tensor], Tensor]] = []
        if name in ("crop", "crop-flip"):
            steps.append(v2.RandomCrop((height, width), padding=max(1, min(height, width) // 8)))
        if name == "crop-flip":
            steps.append(v2.RandomHorizontalFlip())
        other._augment = v2.Compose(steps) if steps else None
        return other

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return up to ``count`` images spread evenly over the set, uint8 ``[n, H, W, C]``."""
        indices = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return np.stack([self.decoded(index) for index in indices])


@dataclass(frozen=True)
class ImageData:
    """A data set, split: nothing of ``test`` may influence training or the choice of the epoch.

    Args:
        name: The data set's name, or the folder.
        train: Training images.
        val: Validation images.
        test: Test images.
        class_names: One name for each label.
        preprocessing: What turns an image file into a model input, with the training set's mean and deviation.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class _Found:
    """Labelled sources as a reader found them, split as far as the data set itself is."""

    splits: dict[str, _Labelled]
    class_names: tuple[str, ...]
    channels: int
    image_size: int


def load_data(
    source: str | Path,
    *,
    root: str | Path = "data",
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> ImageData:
    """Load a data set and split it; the same arguments give the same split.

    Splits that the data set does not come with are cut off its training set, stratified by class: a fifth for
    testing, then a fifth of the rest for validation.

    Args:
        source: ``"digits"``, ``"mnist"``, ``"cifar10"``, or a folder: one subfolder of images for each class, or the
            subfolders ``train``, ``test`` and optionally ``val`` laid out so.
        root: Where ``mnist`` and ``cifar10`` lie on disk, in torchvision's layout.
        image_size: Height and width of the model's input in pixels; by default 16 for digits, 28 for mnist, 32 for
            cifar10, and for folders the images' own size up to 224.
        limit: Use at most so many images of the training and validation set together, and of the test set.
        seed: Decides the splits and the subset.
        download: Whether torchvision may download what is not on disk.

    Raises:
        DataError: If the data is missing, empty, too small to split, or has a file that is no image.
        UsageError: If the name is unknown or an argument out of its range.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; expected 0 to {2**32 - 1}")
    for name, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; expected at least 1")
    if str(source) in DATASETS:
        found = DATASETS[str(source)](Path(root), download)
    elif str(source) and Path(source).is_dir():
        found = _read_folder(Path(source))
    else:
        raise UsageError(
            f"unknown data {str(source)!r}: no such folder, and no such data set; choose from "
            f"{', '.join(DATASETS)} or give a folder of images"
        )
    splits = _split(found, limit, seed)
    size = image_size or found.image_size
    plain = Preprocessing(size, size, found.channels, (0.0,) * found.channels, (1.0,) * found.channels)
    mean, std = _statistics(ImageSet(*splits["train"], plain).sample(_MEASURED_IMAGES))
    preprocessing = Preprocessing(size, size, found.channels, mean, std)
    count = sum(len(labels) for _, labels in splits.values())
    cache = count * size * size * found.channels <= CACHE_BYTES
    with tqdm(total=count, desc="decoding", unit="image", disable=None if cache else True, delay=1) as progress:
        train, val, test = (
            ImageSet(
                *splits[name], preprocessing, preprocessing.batch(splits[name][0], progress.update) if cache else None
            )
            for name in _SPLITS
        )
    return ImageData(str(source), train, val, test, found.class_names, preprocessing)


def _read_digits(root: Path, download: bool) -> _Found:
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _Found(
        {"train": (list(images), digits.target.astype(np.int64))},
        tuple(map(str, digits.target_names)),
        channels=1,
        image_size=16,
    )


def _read_torchvision(kind: Any, channels: int, image_size: int) -> Callable[[Path, bool], _Found]:
    def read(root: Path, download: bool) -> _Found:
        try:
            sets = {
                "train": kind(root, train=True, download=download),
                "test": kind(root, train=False, download=download),
            }
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{kind.__name__} cannot be read under {root} ({reason}); pass --data-root FOLDER, or --download"
            ) from error
        splits: dict[str, _Labelled] = {
            name: (list(np.asarray(data.data)), np.asarray(data.targets, dtype=np.int64)) for name, data in sets.items()
        }
        return _Found(splits, tuple(sets["train"].classes), channels, image_size)

    return read


DATASETS: dict[str, Callable[[Path, bool], _Found]] = {
    "digits": _read_digits,
    "mnist": _read_torchvision(torchvision.datasets.MNIST, channels=1, image_size=28),
    "cifar10": _read_torchvision(torchvision.datasets.CIFAR10, channels=3, image_size=32),
}


def _read_folder(folder: Path) -> _Found:
    """Read a folder of classes, or one whose subfolders are the splits."""
    subfolders = [path.name for path in _subfolders(folder)]
    split_already = "train" in subfolders and (set(subfolders) <= set(_SPLITS) or not _HELD_OUT.isdisjoint(subfolders))
    if split_already and (strangers := set(subfolders) - set(_SPLITS)):
        raise DataError(
            f"{folder} has {', '.join(sorted(strangers))} beside train; expected train, test and optionally val, "
            "or one subfolder of images for each class"
        )
    parts = {name: folder / name for name in subfolders} if split_already else {"train": folder}
    classes = [path.name for path in _subfolders(parts["train"])]
    if len(classes) < 2:
        raise DataError(
            f"{parts['train']} has {len(classes)} class folders; expected at least 2, each with the images of one class"
        )
    splits: dict[str, _Labelled] = {}
    sizes: list[int] = []
    for name, part in parts.items():
        paths: list[ImageSource] = []
        labels: list[int] = []
        if unknown := sorted({path.name for path in _subfolders(part)} - set(classes)):
            raise DataError(f"{part} has classes that {parts['train']} lacks: {', '.join(unknown)}")
        for label, class_name in enumerate(classes):
            files = find_images(part / class_name)
            if not files:
                raise DataError(
                    f"class folder {part / class_name} is missing or has no images; add some, or remove the class"
                )
            paths += files
            labels += [label] * len(files)
        for path in tqdm(paths, desc=f"checking {part.name}", unit="image", disable=None, delay=1):
            with open_image(path) as image:
                sizes.append(min(image.size))
        splits[name] = (paths, np.asarray(labels, dtype=np.int64))
    return _Found(splits, tuple(classes), channels=3, image_size=int(np.clip(np.median(sizes), 16, 224)))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split(found: _Found, limit: int | None, seed: int) -> dict[str, _Labelled]:
    """Cut the missing splits off the training set, and shorten all to ``limit``."""
    splits = dict(found.splits)
    names = found.class_names

    def cut(part: str, size: int | float) -> _Labelled:
        images, labels = splits[part]
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
        splits[part] = _take(images, labels, np.sort(kept))
        return _take(images, labels, np.sort(away))

    if "test" not in splits:
        splits["test"] = cut("train", 0.2)
    if limit is not None:
        for part in ("train", "test"):
            if len(splits[part][1]) > limit:
                splits[part] = cut(part, limit)
    if "val" not in splits:
        splits["val"] = cut("train", 0.2)
    return splits


def _take(images: Sequence[ImageSource], labels: NDArray[np.int64], indices: NDArray[np.int64]) -> _Labelled:
    return [images[index] for index in indices], labels[indices]


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in the unit of pixel / 255."""
    pixels = images.reshape(-1, images.shape[-1]) / 255
    return tuple(map(float, pixels.mean(0))), tuple(float(max(value, 1e-3)) for value in pixels.std(0))
