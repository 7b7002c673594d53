"""From an opened picture to 8-bit pixels of a model's size, with Pillow: turned, made opaque, converted, fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tnn_runtime.images.bombs import check_exif

__all__ = ["FITS", "WHITE", "Colour", "Picture", "cropped_share", "fitted", "picture"]

Colour: TypeAlias = tuple[int, ...]
"""Levels from 0 to 255: one for grey, or red, green and blue."""

WHITE: Colour = (255,)

FITS = ("crop", "pad", "squash")
"""How an image gets to the model's size. ``crop``: scaled to cover it, and cropped at the centre; ``pad``: scaled to
fit inside, and filled up with the background; ``squash``: scaled to height and width without regard to its shape."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, for each value of EXIF's orientation but 1, which is upright."""

_BILINEAR = Image.Resampling.BILINEAR
_MUCH = 4
"""How often an image may be widened before it is shortened as much."""
_STEPS_OF_GREY = {"L;2": 85, "L;4": 17}
"""What grey levels of fewer than 8 bits are multiplied by when Pillow decodes them."""


@dataclass(frozen=True)
class Picture:
    """A whole picture as a model sees it, before it is fitted to the model's size.

    Args:
        image: Upright and opaque, with the mode ``L`` or ``RGB``.
        peak: The largest value of a picture of more than 8 bits, in the unit of its file (of 16-bit colour to the next
            256); ``None`` for one of 8 bits.
    """

    image: Image.Image
    peak: int | None


def picture(opened: Image.Image, mode: str, background: Colour | None) -> Picture:
    """Return a picture upright, with 8 bits, and opaque.

    Args:
        opened: The picture; it is loaded, and not changed.
        mode: ``L`` or ``RGB``.
        background: What transparent pixels are laid on; ``None`` to drop the transparency, which shows the colours
            that are stored below it.

    Raises:
        ValueError: If the pixels are floating-point numbers, or beyond 16 bits.
    """
    # Where there is nothing to do, Pillow's functions return copies, which cost as much as the work of others. The
    # image is returned as it is instead; it may be the caller's own, so that nothing here changes one.
    stored = _stored_as(opened)
    upright = _upright(opened)
    image, peak = _eight_bit(upright)
    if peak is None and ";16" in stored:
        peak = 256 * max(high for _, high in image.convert("RGB").getextrema()) + 255  # type: ignore[misc]
    if background is None or not image.has_transparency_data:
        return Picture(_converted(image, mode), peak)
    return Picture(_converted(_laid_on(background, _with_alpha(upright, image, stored)), mode), peak)


def fitted(image: Image.Image, size: tuple[int, int], fit: str, background: Colour) -> Image.Image:
    """Return an image scaled to a size, bilinear.

    Args:
        image: An image with the mode ``L`` or ``RGB``.
        size: Width and height in pixels.
        fit: One of `FITS`.
        background: What ``pad`` fills up with.
    """
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, method=_BILINEAR)
    if fit == "squash":
        if _MUCH * image.width < size[0] and image.height > _MUCH * size[1]:
            # Pillow may widen first, to far more pixels than the image has.
            image = image.resize((image.width, size[1]), _BILINEAR)
        return image.resize(size, _BILINEAR)
    scale = max(image.width / size[0], image.height / size[1])
    inner = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    if 1 in inner:  # ImageOps.pad would leave nothing of a very narrow image
        image = image.resize(inner, _BILINEAR)
    return ImageOps.pad(image, size, _BILINEAR, background[0] if image.mode == "L" else _rgb(background))


def cropped_share(image: Image.Image, size: tuple[int, int]) -> float:
    """Return the share of an image, 0 to 1, that a crop to the shape of ``size`` (width and height) cuts away."""
    ours, theirs = image.width * size[1], image.height * size[0]
    return 1 - min(ours, theirs) / max(ours, theirs)


def _stored_as(image: Image.Image) -> str:
    """Return what Pillow calls the layout of the pixels in a file that is not loaded yet; nothing for other images."""
    return " ".join(str(tile[3]) for tile in getattr(image, "tile", ())[:1])


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data says; an image whose EXIF data is damaged is taken as it lies."""
    image.load()  # PNG may have the data after the pixels
    try:
        check_exif(_exif(image))
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        turn = _TURNS.get(orientation)
    except Exception:  # Pillow raises a dozen unrelated classes on damaged data, which is no damage of the picture
        turn = None
    return image if turn is None else image.transpose(turn)


def _exif(image: Image.Image) -> bytes:
    """Return the EXIF data that Pillow will read, where they are apart from the file."""
    found: Any = image.info.get("exif")
    if found is None and (text := image.info.get("Raw profile type exif")):
        found = bytes.fromhex("".join(text.split("\n")[3:]))
    return found or b""


def _eight_bit(image: Image.Image) -> tuple[Image.Image, int | None]:
    """Scale grey of more bits to 8, which Pillow's own conversion would clip instead; return the largest value, too."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image, None
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(f"grey values from {lowest} to {highest}, expected 0 to 65535")
    scaled = Image.fromarray((values >> 8).astype(np.uint8))
    scaled.info = dict(image.info)
    return scaled, highest


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode without transparency."""
    if image.mode == mode:
        return image
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # It is dropped in any case; for palettes, Pillow warns of that.
    return image.convert(mode)


def _laid_on(background: Colour, image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, _rgb(background))
    canvas.paste(image, mask=image)
    return canvas


def _with_alpha(upright: Image.Image, image: Image.Image, stored: str) -> Image.Image:
    """Return an image that has transparency as RGBA.

    Args:
        upright: As it is in the file.
        image: The same with 8 bits.
        stored: How the file has its pixels.
    """
    if image.mode not in ("1", "L", "RGB"):
        return image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
    # A single colour is transparent. The file gives it in the depth of the file, and Pillow keeps it so.
    colour = np.asarray(image.info["transparency"])
    values = np.asarray(upright)
    step = _STEPS_OF_GREY.get(stored, 1)
    if image.mode == "1":
        colour = colour > 0
    elif image.mode == "RGB" and (";16" in stored or colour.max() > 255):
        colour = colour >> 8
    elif colour.max() <= 255 // step:
        colour = colour * step
    is_clear = values == colour
    if image.mode == "RGB":
        is_clear = is_clear.all(axis=-1)
    opaque = _converted(image, "RGB").convert("RGBA")
    opaque.putalpha(Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8)))
    return opaque


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = colour * 3 if len(colour) == 1 else colour
    return red, green, blue
