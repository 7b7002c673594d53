"""How images are normalised: mean and standard deviation of each channel, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from tnn_runtime.images.preprocess import SMALLEST_STD
from tnn_train.fields import FieldError, Part

__all__ = ["IMAGENET", "NORMALIZE", "Statistics", "check_statistics"]

NORMALIZE = ("imagenet", "dataset")
"""What a person can name in place of numbers."""

_LUMA = (0.299, 0.587, 0.114)
"""How much of a grey pixel is red, green and blue (ITU-R BT.601), as Pillow makes it."""


@dataclass(frozen=True)
class Statistics:
    """How images are normalised, ``(pixel / 255 - mean) / std``.

    Args:
        mean: One value a channel.
        std: One value a channel.
        origin: Where they come from, for people to read.
        is_guess: Whether nobody told that it is these.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str = field(default="", compare=False)
    is_guess: bool = field(default=False, compare=False)

    def grey(self) -> Statistics:
        """Return the statistics for grey images.

        The channels are averaged by their share in a grey pixel. This is exact for the mean, and for the deviation
        where the channels rise and fall together, as they nearly do.
        """
        if len(self.mean) == 1:
            return self
        mean, std = (
            sum(share * value for share, value in zip(_LUMA, values, strict=True)) for values in (self.mean, self.std)
        )
        return dataclasses.replace(self, mean=(mean,), std=(std,))

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")


def check_statistics(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    mean_name: Part,
    std_name: Part,
    channels: int = 3,
) -> Statistics | None:
    """Return what a person gave as mean and deviation, with one value for each channel; ``None`` if nothing.

    Args:
        mean: One value, or one a channel.
        std: One value, or one a channel.
        mean_name: What to call the mean in an error.
        std_name: What to call the deviation in an error.
        channels: Of the images, 1 (grey) or 3 (RGB).

    Raises:
        FieldError: If only one of them is given, there are other numbers of values, or one is out of its range.
    """
    for given, name, other, other_name in ((mean, mean_name, std, std_name), (std, std_name, mean, mean_name)):
        if given is not None and other is None:
            raise FieldError(name, " is given without ", other_name, "; give both")
    if mean is None or std is None:
        return None
    expected = "one value for grey images" if channels == 1 else "one value, or one for each of 3 channels"
    for given, name, lowest in ((mean, mean_name, 0.0), (std, std_name, SMALLEST_STD)):
        if len(given) not in (1, channels):
            raise FieldError(name, f" has {len(given)} values; expected {expected}")
        if not all(isinstance(value, int | float) and lowest <= value <= 1 for value in given):
            told = " ".join(map(str, given))
            raise FieldError(name, f" is {told}; expected {lowest:g} to 1, in the unit of pixel / 255")
    means, deviations = (tuple(map(float, given)) * (channels // len(given)) for given in (mean, std))
    return Statistics(means, deviations, "given")
