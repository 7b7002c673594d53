"""Which images a model is trained on, as a frozen dataclass that checks its own values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from tyro.conf import arg

from tnn_runtime.bundle.json_values import decode
from tnn_runtime.errors import ArtifactError
from tnn_runtime.images.limits import MAX_PIXELS
from tnn_runtime.images.preprocess import FITS, WHITE, Colour
from tnn_train.fields import Field, FieldError, check_utf8, one_of
from tnn_train.statistics import NORMALIZE, Statistics, check_statistics

__all__ = ["HELD_OUT", "DataConfig", "recorded_data"]

HELD_OUT = 0.2
"""The share that is cut off a set where none is given."""


@dataclass(frozen=True)
class DataConfig:
    """A data set, and which part of it is used.

    Args:
        source: digits, mnist, fashion-mnist, cifar10, cifar100, nabirds or fake; or a folder with one subfolder of
            images for each class, or with the subfolders train and optionally val and test laid out so; training,
            valid, validation, dev, testing and eval are other names of these.
        root: The folder in which data sets lie: MNIST, FashionMNIST, cifar-10-batches-py and cifar-100-python as
            torchvision lays them out, and nabirds.
        image_size: Height and width of the model's input in pixels, one number if they are equal; None for 16 with
            digits, 28 with mnist and fashion-mnist, 32 with cifar10 and cifar100, 224 with fake, and else the images'
            own size up to 224.
        limit: Use at most so many images of the training and validation set together, and of the test set.
        seed: Decides the splits, the subset, and the images of fake.
        test_share: The share of the images to test on, if they come without a test set; None for a fifth.
        val_share: The share of the same images to validate on, if they come without a validation set; None for a fifth
            of what is left of them for training.
        groups: CSV file with the columns image (its path in the folder of the images) and group; the images of a group
            are all in the same set.
        skip_unusable: Go on without the files that cannot be used, and list them in results.json.
        download: Let torchvision download what is not on disk.
        crop_to_boxes: Crop images to the bounding boxes that come with nabirds.
        fit: How an image gets to the input's size. crop: scaled to cover it, and cropped at the centre; pad: scaled to
            fit inside, and filled up with the background; squash: scaled without regard to its shape.
        background: What transparent pixels are laid on, 0 to 255, one value or red, green and blue; None to drop the
            transparency.
        normalize: imagenet, or dataset for mean and deviation of the training set; None for those of the weights that
            the training starts from, or else of the training set.
        mean: Mean of the normalisation in the unit of pixel / 255, one value or one a channel, in place of normalize.
        std: Deviation of the normalisation, likewise.
        nested_classes: Take folders in folders as classes of their own, named by their paths, such as animal/cat;
            without it, all images below a folder are of one class.

    Raises:
        FieldError: If a value is out of its range.
    """

    source: Annotated[str, arg(name="data")]
    root: Annotated[str, arg(name="data-root")] = "data"
    image_size: int | tuple[int, ...] | None = None
    limit: int | None = None
    seed: Annotated[int, arg(name="split-seed")] = 0
    download: bool = False
    crop_to_boxes: bool = False
    test_share: float | None = None
    val_share: float | None = None
    groups: str | None = None
    skip_unusable: bool = False
    fit: str = "crop"
    background: Colour | None = field(default=WHITE, metadata={"earlier": None})
    normalize: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    nested_classes: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "root"):
            if not isinstance(getattr(self, name), str):
                raise FieldError(Field(DataConfig, name), f" is {getattr(self, name)!r}; expected text")
        if not isinstance(self.groups, str | None):
            raise FieldError(Field(DataConfig, "groups"), f" is {self.groups!r}; expected text or None")
        check_utf8(self, "source", "root", "groups")
        for name in ("download", "crop_to_boxes", "nested_classes", "skip_unusable"):
            if not isinstance(getattr(self, name), bool):
                raise FieldError(Field(DataConfig, name), f" is {getattr(self, name)!r}; expected True or False")
        _in_range("seed", self.seed, 0, 2**32 - 1)
        for name in ("background", "mean", "std"):
            if isinstance(values := getattr(self, name), list):
                object.__setattr__(self, name, tuple(values))
        self._check_size()
        one_of(self, "fit", FITS)
        self._check_background()
        self._check_normalization()
        if self.limit is not None:
            _in_range("limit", self.limit, 1, None)
        for name in ("test_share", "val_share"):
            share = getattr(self, name)
            if share is not None and (type(share) not in (int, float) or not 0 < share < 1):
                raise FieldError(Field(DataConfig, name), f" is {share!r}; expected a number above 0 and below 1")
        test = HELD_OUT if self.test_share is None else self.test_share
        if test + (self.val_share or 0) >= 1:
            raise FieldError(
                *(Field(DataConfig, "test_share"), f" is {test} and ", Field(DataConfig, "val_share")),
                f" is {self.val_share}; expected less than 1 together, so that there are images to train on",
            )

    def size(self, usual: int) -> tuple[int, int]:
        """Return height and width of the model's input in pixels.

        Args:
            usual: Both, where no size was asked for.
        """
        asked = self.image_size or usual
        height, width = (asked, asked) if isinstance(asked, int) else asked
        return height, width

    def statistics(self, channels: int) -> Statistics | None:
        """Return the mean and the deviation that were given; ``None`` if none were.

        Args:
            channels: Of the images, 1 (grey) or 3 (RGB).

        Raises:
            FieldError: If there are other numbers of values.
        """
        return check_statistics(self.mean, self.std, Field(DataConfig, "mean"), Field(DataConfig, "std"), channels)

    def _check_size(self) -> None:
        size = self.image_size
        if isinstance(size, tuple | list):
            if len(size) not in (1, 2):
                raise FieldError(
                    Field(DataConfig, "image_size"), f" has {len(size)} numbers; expected one, or height and width"
                )
            sides = tuple(size)
            object.__setattr__(self, "image_size", sides[0] if len(set(sides)) == 1 else sides)
        else:
            sides = () if size is None else (size,)
        for side in sides:
            _in_range("image_size", side, 1, math.isqrt(MAX_PIXELS))

    def _check_background(self) -> None:
        name = Field(DataConfig, "background")
        if self.background is None:
            if self.fit == "pad":
                raise FieldError(name, " is None with ", Field(DataConfig, "fit"), " pad; give a colour to pad with")
            return
        levels = self.background
        if len(levels) not in (1, 3) or not all(type(level) is int and 0 <= level <= 255 for level in levels):
            raise FieldError(
                name, f" is {' '.join(map(str, levels))}; expected 0 to 255, one value or red, green and blue"
            )

    def _check_normalization(self) -> None:
        normalize = Field(DataConfig, "normalize")
        if self.normalize is not None:
            one_of(self, "normalize", NORMALIZE)
            for name in ("mean", "std"):
                if getattr(self, name) is not None:
                    raise FieldError(normalize, " and ", Field(DataConfig, name), " are given; give one of them")
        self.statistics(channels=3)


def _in_range(name: str, value: int, lowest: int, highest: int | None) -> None:
    if type(value) is not int or value < lowest or (highest is not None and value > highest):
        expected = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise FieldError(Field(DataConfig, name), f" is {value!r}; expected {expected}")


def recorded_data(config: Mapping[str, Any], name: object, **changes: str) -> DataConfig:
    """Return where the images came from by the configuration of a run or a checkpoint.

    Args:
        config: With the section ``data``.
        name: What to call it in an error.
        **changes: Fields that are to be others.

    Raises:
        ArtifactError: If it does not tell.
    """
    try:
        return decode(DataConfig, {**config["data"], **changes}, "data")
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{name} does not tell its data ({error}); train again") from error
