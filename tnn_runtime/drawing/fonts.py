"""Fonts that a machine has, and texts in them: what a font lacks is told in letters that it has."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont, features

__all__ = ["DIRECTION", "Font", "font_for", "in_letters", "isolated", "wrapped"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "malgun.ttf",
)
_BOLD = ("DejaVuSans-Bold.ttf", "NotoSans-Bold.ttf", "LiberationSans-Bold.ttf", "arialbd.ttf", "Arial Bold.ttf")
"""Fonts of Linux, macOS and Windows, the first choice first; the last is Pillow's own, which has little but ASCII."""

_MISSING = "\U0010ffff"
"""A character that no font has."""

_PLAIN = {"\N{MINUS SIGN}": "-", "\N{EM DASH}": "-", "\N{EN DASH}": "-"}


DIRECTION = "ltr" if features.check_feature("raqm") else None
"""Which way lines run, where Pillow can lay out names that run the other way."""


def isolated(name: str) -> str:
    """Return a name so that it runs its own way, and what is around it does not turn with it."""
    return f"\u2068{name}\u2069" if DIRECTION else name


def font_for(text: str, size: int, *, bold: bool = False) -> Font:
    """Return a font of a size in pixels that has as many of the letters of a text as any font of this machine."""
    fonts = _fonts(size, bold)
    return max(fonts, key=lambda font: sum(_has(font, letter) for letter in text))


def in_letters(text: str, font: Font) -> str:
    """Return a text with what the font lacks in letters: ``"é"`` as ``"e"``, an emoji by its name, else its number."""
    return "".join(letter if _has(font, letter) else _named(letter, font) for letter in text)


def wrapped(text: str, font: Font, width: float) -> list[str]:
    """Return the lines of a text that are no wider than ``width`` pixels; words that are too long are broken."""
    lines = [""]
    for word in text.split(" "):
        line = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(line) <= width:
            lines[-1] = line
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@cache
def _fonts(size: int, bold: bool) -> list[Font]:
    found: list[Font] = []
    for name in (*_BOLD, *_NAMES) if bold else _NAMES:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return [*found, ImageFont.load_default(size)]


@cache
def _has(font: Font, letter: str) -> bool:
    if letter.isspace() or unicodedata.category(letter) in ("Cf", "Mn"):
        return True
    return _mask(font, letter) != _mask(font, _MISSING)


def _mask(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _named(letter: str, font: Font) -> str:
    plain = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)[0]
    if plain != letter and _has(font, plain):
        return plain
    name = unicodedata.name(letter, "").lower()
    return f"[{name}]" if name and unicodedata.category(letter) == "So" else f"[U+{ord(letter):04X}]"
