"""What an image may be: its pixels, its bytes and its format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tnn_runtime.errors import UsageError
from tnn_runtime.options import at_least_one, environment, environment_number, shown

__all__ = ["FORMATS", "LIMITS", "MAX_BYTES", "MAX_PIXELS", "Limits"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""The image formats that can be decoded; everything else Pillow knows is refused."""

MAX_PIXELS = 50_000_000
"""The largest width x height that is decoded by default; the size is checked before any pixel is."""

MAX_BYTES = 4 * MAX_PIXELS
"""The largest file that is read by default: `MAX_PIXELS` of four bytes, uncompressed."""

_LARGEST = 1 << 40


@dataclass(frozen=True)
class Limits:
    """What an image may be. Images beyond a limit are refused with an `InputError` before their pixels are decoded.

    Args:
        max_pixels: The largest width x height. Pillow has a limit of its own, ``PIL.Image.MAX_IMAGE_PIXELS``, of 179
            million pixels.
        max_bytes: The largest file, in bytes.
        formats: Which of `FORMATS` are decoded, in upper or lower case.

    Raises:
        UsageError: If a value is out of its range.
    """

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        at_least_one(_LARGEST, max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        object.__setattr__(self, "formats", _known(self.formats, "formats"))

    @classmethod
    def from_environment(cls) -> Self:
        """Return the limits that ``TNN_MAX_PIXELS``, ``TNN_MAX_BYTES`` and ``TNN_FORMATS`` ask for.

        A variable that is not set, or empty, means the default. Formats are separated by commas.

        Raises:
            UsageError: If a variable has no meaning; the message names it.
        """
        formats = environment("TNN_FORMATS").replace(",", " ").split()
        return cls(
            environment_number("TNN_MAX_PIXELS", MAX_PIXELS, _LARGEST),
            environment_number("TNN_MAX_BYTES", MAX_BYTES, _LARGEST),
            _known(formats, "TNN_FORMATS") if formats else FORMATS,
        )


def _known(formats: Iterable[str], told_as: str) -> tuple[str, ...]:
    """Return the names of formats as `FORMATS` spells them, in its order."""
    is_list = isinstance(formats, Iterable) and not isinstance(formats, str)
    names = {str(name).upper() for name in formats} if is_list else set()
    if not names or not names <= set(FORMATS):
        raise UsageError(f"{told_as} is {shown(formats)}; expected one or more of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in names)


LIMITS = Limits()
"""The default limits."""
