"""From an image file to the uint8 array that a model takes: one definition for training, evaluation and serving.

Decoding, orientation, colour conversion and resizing happen here, with Pillow. Casting to float and normalising
happen inside the model's graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from tnn_runtime.errors import ArtifactError, InputError
from tnn_runtime.images.files import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    broken,
    check_pixels,
    open_file,
)
from tnn_runtime.text import printable

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageSource",
    "Preprocessing",
    "open_image",
]

ImageSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]

_SMALLEST_STD = 1e-6
_MODES = {1: "L", 3: "RGB"}
_TURNED = frozenset(range(2, 9))
"""The values of EXIF's orientation with which the rows are not from the top to the bottom, or the columns not from the
left to the right."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the backbone sees it.

    The image is turned upright (EXIF), converted to grey or RGB, scaled so that it covers ``height`` x ``width``
    and cropped at the centre (bilinear); then, inside the graph, ``(pixel / 255 - mean) / std`` per channel.

    Args:
        height: Rows of the model's input, in pixels.
        width: Columns of the model's input, in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: One value a channel, in the unit of ``pixel / 255``.
        std: One positive value a channel, in the same unit.

    Raises:
        ArtifactError: If a value is out of its range.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.width > 0 and self.height * self.width <= MAX_PIXELS):
            raise ArtifactError(
                f"preprocessing has the size {self.height}x{self.width}; expected 1x1 up to {MAX_PIXELS} pixels"
            )
        if self.channels not in _MODES:
            raise ArtifactError(f"preprocessing has {self.channels} channels; expected 1 (grey) or 3 (RGB)")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ArtifactError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} deviations for {self.channels} "
                "channels; expected one each"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) < _SMALLEST_STD:
            raise ArtifactError(
                f"preprocessing has mean {self.mean} and std {self.std}; "
                f"expected finite numbers and a std of at least {_SMALLEST_STD}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape ``(height, width, channels)`` of one model input."""
        return self.height, self.width, self.channels

    def __call__(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return one image as a uint8 array ``[height, width, channels]``.

        Raises:
            InputError: If the source is no image, is empty, or is over `MAX_PIXELS` or `MAX_BYTES`.
        """
        with open_image(source) as opened:
            # Phone cameras write MPO: a JPEG, followed by previews or a second view.
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                raise InputError(f"{_name(source)} has several frames; expected a single picture")
            try:
                check_pixels(opened)
                image = _converted(_eight_bit(_upright(opened)), _MODES[self.channels])
                if image.size != (self.width, self.height):
                    image = ImageOps.fit(image, (self.width, self.height), method=Image.Resampling.BILINEAR)
            except Exception as error:  # Pillow raises a dozen unrelated classes on damaged files
                raise broken(_name(source), error) from error
        return np.asarray(image, dtype=np.uint8).reshape(self.shape)

    def batch(self, sources: Sequence[ImageSource], progress: Callable[[], object] = lambda: None) -> NDArray[np.uint8]:
        """Return images as one uint8 array ``[len(sources), height, width, channels]``.

        Args:
            sources: The images.
            progress: Called after each of them.
        """
        out = np.empty((len(sources), *self.shape), dtype=np.uint8)
        for row, source in zip(out, sources, strict=True):
            row[:] = self(source)
            progress()
        return out


@contextmanager
def open_image(source: ImageSource) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels, and check its format, frames and size.

    Args:
        source: A path, the bytes of a file, a Pillow image, or a uint8 array ``[H, W]`` or ``[H, W, 1 or 3]``.

    Raises:
        InputError: If the source is no usable image.
    """
    if isinstance(source, np.ndarray):
        opened: AbstractContextManager[Image.Image] = nullcontext(_from_array(source))
    elif isinstance(source, Image.Image):
        opened = nullcontext(source)
    elif isinstance(source, str | Path | bytes):
        opened = open_file(source, _name(source))
    else:
        raise InputError(
            f"got an image of type {type(source).__name__}; expected a path, bytes, a PIL image or a uint8 array"
        )
    with opened as image:
        pixels = image.width * image.height
        if pixels == 0:
            raise InputError(f"{_name(source)} has the size {image.width}x{image.height}; expected at least one pixel")
        if pixels > MAX_PIXELS:
            raise InputError(
                f"{_name(source)} has {image.width}x{image.height} = {pixels} pixels; "
                f"the limit is {MAX_PIXELS}; scale it down first"
            )
        yield image


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in _MODES:
        raise InputError(
            f"got an array of dtype {array.dtype} and shape {list(array.shape)}; expected uint8 [H, W], [H, W, "
            "1] or [H, W, 3] with values 0..255"
        )
    if array.size == 0:
        raise InputError(f"got an array of shape {list(array.shape)}; expected at least one pixel")
    return Image.fromarray(array.squeeze(-1) if array.ndim == 3 and channels == 1 else array)


# Where there is nothing to do, Pillow's functions return copies, which cost as much as the work of others. The image is
# returned as it is instead; it may be the caller's own, so that nothing here changes one.


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data says."""
    image.load()  # PNG may have the data after the pixels
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return ImageOps.exif_transpose(image) if turned else image


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode without transparency."""
    if image.mode == mode:
        return image
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # It is dropped in any case; for palettes, Pillow warns of that.
    return image.convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's own conversion would clip instead."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values from {values.min()} to {values.max()}, expected 0 to 65535")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _name(source: ImageSource) -> str:
    return printable(str(source)) if isinstance(source, str | Path) else "the image"
