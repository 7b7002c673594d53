"""What a classifier of another program takes, as a person tells it: size and normalisation, class names."""

from __future__ import annotations

from argparse import _ActionsContainer
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_runtime.images.folders import ImageFolder
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.model.class_names import read_class_file

__all__ = ["add_file_options", "make_preprocessing", "random_images", "read_class_names"]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SIDE = 224


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


def read_class_names(file: Path | None, folder: ImageFolder | None) -> list[str]:
    """Return the names of the logits: the lines of a file, or the class folders of a folder of images in sorted order.

    Raises:
        UsageError: As `read_class_file`, or if there is neither a file nor a folder.
        InputError: If the folder does not tell its classes.
    """
    if file is None:
        if folder is None:
            raise UsageError(
                "the names of the classes are not known; give --class-names FILE with one a line, or --images FOLDER "
                "with a subfolder for each"
            )
        return list(folder.class_names)
    names = () if folder is None or folder.trouble else folder.class_names
    return read_class_file(file, names)


def random_images(preprocessing: Preprocessing, count: int) -> NDArray[np.uint8]:
    """Return images of random pixels, uint8 ``[count, H, W, C]``, the same ones each time."""
    return np.random.default_rng(0).integers(0, 256, (count, *preprocessing.shape), dtype=np.uint8)
