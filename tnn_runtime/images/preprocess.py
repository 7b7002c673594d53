"""From an image file to the uint8 array that a model takes: one definition for training, evaluation and serving.

Decoding, orientation, transparency, colour conversion and resizing happen here, with Pillow. Casting to float and
normalising happen inside the model's graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tnn_runtime.errors import ArtifactError, InputError
from tnn_runtime.images.files import broken, check_pixels, open_file
from tnn_runtime.images.limits import LIMITS, MAX_PIXELS, Limits
from tnn_runtime.images.pixels import FITS, WHITE, Colour, Picture, cropped_share, fitted, picture
from tnn_runtime.text import printable

__all__ = [
    "FITS",
    "SMALLEST_STD",
    "WHITE",
    "AnyImage",
    "Colour",
    "ImageSource",
    "Preprocessing",
    "Traits",
    "open_image",
    "source_name",
    "taken",
]

ImageSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""An image that is decoded, or to be decoded: the path or the content of a file, or pixels."""

AnyImage: TypeAlias = ImageSource | os.PathLike[str] | bytearray | memoryview | IO[bytes]
"""What callers may give for an image; see `taken`."""

SMALLEST_STD = 1e-6
_MODES = {1: "L", 3: "RGB"}
_LEVELS = range(256)


@dataclass(frozen=True)
class Traits:
    """What decoding an image told of it.

    Args:
        peak: The largest value of an image of more than 8 bits, 0 to 65535; ``None`` for one of 8 bits.
        cropped: The share of the image, 0 to 1, that was cropped away.
    """

    peak: int | None
    cropped: float


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the backbone sees it.

    The image is turned upright (EXIF), laid on the background where it is transparent, converted to grey or RGB, and
    brought to ``height`` x ``width`` (bilinear); then, inside the graph, ``(pixel / 255 - mean) / std`` per channel.
    Values of 16 bits are divided by 256. Colour profiles are not applied.

    Args:
        height: Rows of the model's input, in pixels.
        width: Columns of the model's input, in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: One value a channel, in the unit of ``pixel / 255``.
        std: One positive value a channel, in the same unit.
        fit: One of `FITS`. ``"crop"``: scaled to cover the size, and cropped at the centre; ``"pad"``: scaled to fit
            inside, and filled up with the background; ``"squash"``: scaled without regard to its shape.
        background: What transparent pixels are laid on, 0 to 255: one value, or one a channel. ``None`` drops the
            transparency, which shows the colours stored below it: so it is in files written before there was this
            field.

    Raises:
        ArtifactError: If a value is out of its range.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"
    background: Colour | None = field(default=WHITE, metadata={"absent": None})

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
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) < SMALLEST_STD:
            raise ArtifactError(
                f"preprocessing has mean {self.mean} and std {self.std}; "
                f"expected finite numbers and a std of at least {SMALLEST_STD}"
            )
        if self.fit not in FITS:
            raise ArtifactError(f"preprocessing has the fit {self.fit!r}; expected one of {', '.join(FITS)}")
        if self.background is None:
            if self.fit == "pad":
                raise ArtifactError("preprocessing has the fit 'pad' and no background; expected a colour to pad with")
        elif len(self.background) not in (1, self.channels) or not set(self.background) <= set(_LEVELS):
            raise ArtifactError(
                f"preprocessing has the background {self.background}; expected 0 to 255, one value or one for each of "
                f"{self.channels} channels"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape ``(height, width, channels)`` of one model input."""
        return self.height, self.width, self.channels

    @property
    def steps(self) -> tuple[str, str, str, str]:
        """What happens to an image before the graph, one after the other, for people to read."""
        colours = f"converted to {'grey' if self.channels == 1 else 'RGB'}"
        if self.background is None:
            transparency = "transparency dropped"
        else:
            transparency = f"laid on the background {' '.join(map(str, self.background))} where it is transparent"
        size = f"{self.height}x{self.width} pixels"
        fits = {
            "crop": f"scaled so that it covers {size}, and cropped at the centre",
            "pad": f"scaled so that it fits into {size}, and filled up with the background",
            "squash": f"scaled to {size} without regard to its shape",
        }
        return "turned upright (EXIF)", transparency, colours, fits[self.fit]

    def __call__(self, source: AnyImage, limits: Limits = LIMITS) -> NDArray[np.uint8]:
        """Return one image as a uint8 array ``[height, width, channels]``.

        Raises:
            InputError: If the source is no image, is empty, or is over the limits.
        """
        return self.decode(source, limits)[0]

    def decode(self, source: AnyImage, limits: Limits = LIMITS) -> tuple[NDArray[np.uint8], Traits]:
        """Return one image as ``__call__`` does, and what decoding it told of it.

        Raises:
            InputError: As `__call__`.
        """
        with self._picture(source, limits) as whole:
            size = self.width, self.height
            image = fitted(whole.image, size, self.fit, self.background or WHITE)
            cropped = cropped_share(whole.image, size) if self.fit == "crop" else 0.0
        return np.asarray(image, dtype=np.uint8).reshape(self.shape), Traits(whole.peak, cropped)

    def picture(self, source: AnyImage) -> Image.Image:
        """Return the whole picture as the model sees it before it is brought to the model's size: to be shown.

        Raises:
            InputError: As `__call__`.
        """
        with self._picture(source) as whole:
            return whole.image.copy()

    @contextmanager
    def _picture(self, source: AnyImage, limits: Limits = LIMITS) -> Iterator[Picture]:
        """Decode a picture; what fails in the meantime, the source is to blame for."""
        with open_image(source, limits) as opened:
            # Phone cameras write MPO: a JPEG, followed by previews or a second view.
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                raise InputError(f"{source_name(source)} has several frames; expected a single picture")
            try:
                check_pixels(opened)
                yield picture(opened, _MODES[self.channels], self.background)
            except Exception as error:  # Pillow raises a dozen unrelated classes on damaged files
                raise broken(source_name(source), error) from error

    def batch(self, sources: Sequence[AnyImage], progress: Callable[[], object] = lambda: None) -> NDArray[np.uint8]:
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


def taken(source: AnyImage, limits: Limits = LIMITS) -> ImageSource:
    """Return a source that the caller cannot change any more, where it is the content of a file: a path or bytes.

    Raises:
        InputError: If it is an open file that cannot be read.
    """
    if isinstance(source, str | Path | bytes | Image.Image | np.ndarray):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if not hasattr(source, "read"):
        raise InputError(
            f"got an image of type {type(source).__name__}; expected a path, bytes, an open file, a PIL image or a "
            "uint8 array"
        )
    try:
        content = source.read(limits.max_bytes + 1)
    except Exception as error:  # files of callers may raise anything
        raise broken("the open file", error) from error
    if not isinstance(content, bytes):
        raise InputError(f"got a file that gives {type(content).__name__}; expected one that was opened with mode 'rb'")
    return content


@contextmanager
def open_image(source: AnyImage, limits: Limits = LIMITS) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels, and check its format, frames and size.

    Args:
        source: A path, the content of a file, an open file, a Pillow image, or a uint8 array ``[H, W]`` or ``[H, W, 1
            or 3]``.
        limits: What it may be.

    Raises:
        InputError: If the source is no usable image.
    """
    source = taken(source, limits)
    if isinstance(source, np.ndarray):
        opened: AbstractContextManager[Image.Image] = nullcontext(_from_array(source))
    elif isinstance(source, Image.Image):
        opened = nullcontext(source)
    else:
        opened = open_file(source, source_name(source), limits)
    with opened as image:
        pixels = image.width * image.height
        if pixels == 0:
            raise InputError(
                f"{source_name(source)} has the size {image.width}x{image.height}; expected at least one pixel"
            )
        if pixels > limits.max_pixels:
            raise InputError(
                f"{source_name(source)} has {image.width}x{image.height} = {pixels} pixels; "
                f"the limit is {limits.max_pixels}; scale it down first"
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


def source_name(source: AnyImage) -> str:
    """Return what to call an image in a message: its path, as it can be shown on one line, if it has one."""
    return printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else "the image"
