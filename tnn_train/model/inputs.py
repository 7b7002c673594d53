"""What a classifier of another program takes, as a person tells it: size and normalisation, class names."""

from __future__ import annotations

from argparse import _ActionsContainer
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_runtime.images.folders import ImageFolder
from tnn_runtime.images.preprocess import FITS, WHITE, Colour, Preprocessing
from tnn_train.model.class_names import read_class_file
from tnn_train.model.weights import published_statistics
from tnn_train.statistics import check_statistics

__all__ = ["add_file_options", "make_preprocessing", "random_images", "read_class_names"]

_SIDE = 224
_NO_BACKGROUND = "none"


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
    add("--mean", type=float, nargs="+", help="of the normalisation, one a channel; if not given, torchvision's")
    add("--std", type=float, nargs="+", help="of the normalisation, one a channel; if not given, torchvision's")
    add(
        "--fit",
        choices=FITS,
        help="how images were brought to the input's size: crop (scaled to cover it, and cropped at the centre), pad "
        "(scaled to fit inside, and filled up with the background) or squash; crop if not given",
    )
    add(
        "--background",
        nargs="+",
        metavar="LEVEL",
        help="what transparent pixels are laid on, 0 to 255, one value or red, green and blue; none to drop the "
        "transparency, as Pillow's convert does; white if not given",
    )
    add("--stem", metavar="STEM", help="of a ResNet: imagenet or small; if not given, what the weights have")
    add("--prefix", metavar="NAME", help=f"name of the {layer} in the classifier, such as fc; if not given, found")
    add("--backbone-weights", type=Path, metavar="FILE", help="state dict of the backbone, for that of a layer alone")


def make_preprocessing(
    size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fit: str | None = None,
    background: Sequence[str] | None = None,
    backbone: str = "",
) -> Preprocessing:
    """Return what turns image files into inputs.

    Args:
        size: Height and width in pixels, or one number for both; 224 if ``None``.
        mean: Of the normalisation, one a channel; torchvision's for the backbone if ``None``.
        std: Of the normalisation, one a channel; torchvision's for the backbone if ``None``.
        fit: How an image gets to the size; ``"crop"`` if ``None``.
        background: What transparent pixels are laid on, as typed: numbers, or ``none``; white if ``None``.
        backbone: torchvision's name of the classifier.

    Raises:
        UsageError: If there are other numbers of values, or a value is out of its range.
        ArtifactError: If the size is out of its range.
    """
    size = size or (_SIDE,)
    if len(size) > 2:
        raise UsageError(f"--image-size got {len(size)} numbers; expected one, or height and width")
    channels = 1 if len(mean or ()) == len(std or ()) == 1 else 3
    statistics = check_statistics(mean, std, "--mean", "--std", channels) or published_statistics(backbone)
    colour = _background(background, channels)
    if colour is None and fit == "pad":
        raise UsageError("got --fit pad and --background none; give a colour to pad with")
    return Preprocessing(size[0], size[-1], channels, statistics.mean, statistics.std, fit or FITS[0], colour)


def _background(words: Sequence[str] | None, channels: int) -> Colour | None:
    """Return the colour that was typed; ``None`` for none."""
    if words is None:
        return WHITE
    if [word.lower() for word in words] == [_NO_BACKGROUND]:
        return None
    levels = tuple(int(word) for word in words if word.isdecimal() and int(word) <= 255)
    if len(levels) != len(words) or len(levels) not in (1, channels):
        colours = "one value for grey images" if channels == 1 else "one value, or red, green and blue"
        raise UsageError(f"--background is {' '.join(words)}; expected 0 to 255, {colours}, or {_NO_BACKGROUND}")
    return levels


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
