"""What a classifier of another program takes, as a person tells it: size and normalisation, class names, images."""

from __future__ import annotations

from argparse import _ActionsContainer
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import InputError, UsageError
from tnn_runtime.images.preprocess import Preprocessing, find_class_folders, find_images
from tnn_train.fields import repeated

__all__ = [
    "add_file_options",
    "check_class_names",
    "image_files",
    "make_preprocessing",
    "random_images",
    "read_class_names",
    "read_samples",
]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SIDE = 224
_SAMPLES = 256


def add_file_options(parser: _ActionsContainer, layer: str) -> None:
    """Add the options that tell of a state dict what it does not say itself.

    Args:
        parser: The parser of a command, or a group of its options.
        layer: What to call the last layer of the classifier in the help.
    """
    add = parser.add_argument
    add(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="the names of the logits, one a line; if not given, the subfolders of --images in sorted order, as "
        "torchvision's ImageFolder counts them",
    )
    add("--image-size", type=int, nargs="+", metavar="PIXELS", help=f"height and width of the input ({_SIDE})")
    add("--mean", type=float, nargs="+", help="of the normalisation, one a channel; if not given, ImageNet's")
    add("--std", type=float, nargs="+", help="of the normalisation, one a channel; if not given, ImageNet's")
    add("--stem", metavar="STEM", help="of a ResNet: imagenet or small; if not given, what the weights have")
    add("--prefix", metavar="NAME", help=f"name of the {layer} in the classifier, such as fc; if not given, found")
    add("--backbone-weights", type=Path, metavar="FILE", help="state dict of the backbone, for that of a layer alone")


def make_preprocessing(
    size: Sequence[int] | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Preprocessing:
    """Return what turns image files into inputs.

    Args:
        size: Height and width in pixels, or one number for both; 224 if ``None``.
        mean: Of the normalisation, one a channel; ImageNet's if ``None``.
        std: Of the normalisation, one a channel; ImageNet's if ``None``.

    Raises:
        UsageError: If there are other numbers of values.
        ArtifactError: If a value is out of its range.
    """
    size = size or (_SIDE,)
    if len(size) > 2:
        raise UsageError(f"--image-size got {len(size)} numbers; expected one, or height and width")
    means, deviations = mean or _IMAGENET["mean"], std or _IMAGENET["std"]
    if len(means) != len(deviations) or len(means) not in (1, 3):
        raise UsageError(
            f"there are {len(means)} means and {len(deviations)} deviations; expected one each for grey images, or "
            "three for RGB: give --mean and --std"
        )
    return Preprocessing(size[0], size[-1], len(means), tuple(means), tuple(deviations))


def read_class_names(file: Path | None, folder: Path | None) -> list[str]:
    """Return the names of the logits: the lines of a file, or the subfolders of a folder of images in sorted order.

    Raises:
        UsageError: If the file cannot be read or names a class twice, or there is neither a file nor a folder.
        InputError: As `image_files`, for a folder that is asked.
    """
    if file is None:
        if folder is None:
            raise UsageError(
                "the names of the classes are not known; give --class-names FILE with one a line, or --images FOLDER "
                "with a subfolder for each"
            )
        image_files(folder)
        return [path.name for path in find_class_folders(folder)]
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); expected a text file with one class name a line") from error
    check_class_names(names, str(file))
    return names


def check_class_names(names: Iterable[str], source: str = "class_names") -> None:
    """Make sure that each class has a name of its own, since bundles and predictions tell classes by their names.

    Args:
        names: The names.
        source: Where they come from, for the error message.

    Raises:
        UsageError: If two classes have the same name.
    """
    if (twice := repeated(names)) is not None:
        raise UsageError(f"{source} has two classes called {twice!r}; expected a name of its own for each")


def image_files(folder: Path) -> list[Path]:
    """Return every file below a folder in sorted order.

    Raises:
        InputError: If it is no folder, or there is no file.
    """
    files = find_images(folder) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} has no files; expected a folder of images")
    return files


def read_samples(
    folder: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return up to 256 images, spread evenly over a folder, and their classes.

    Args:
        folder: The folder.
        preprocessing: What turns an image file into an input.
        class_names: One name for each logit.

    Returns:
        Images, uint8 ``[n, H, W, C]``, and their classes, int64 ``[n]``; ``None`` where a subfolder is no class.

    Raises:
        InputError: As `image_files`, or if a file is no image.
    """
    files = image_files(folder)
    files = [files[place] for place in np.unique(np.linspace(0, len(files) - 1, _SAMPLES).astype(int))]
    places = {name: index for index, name in enumerate(class_names)}
    found = [places.get(file.relative_to(folder).parts[0]) for file in files]
    known = [place for place in found if place is not None]
    labels = np.array(known, np.int64) if len(known) == len(files) else None
    return preprocessing.batch(files), labels


def random_images(preprocessing: Preprocessing, count: int) -> NDArray[np.uint8]:
    """Return images of random pixels, uint8 ``[count, H, W, C]``, the same ones each time."""
    return np.random.default_rng(0).integers(0, 256, (count, *preprocessing.shape), dtype=np.uint8)
