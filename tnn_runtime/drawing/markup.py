"""HTML that is safe by the way it is made: text is escaped, unless it is `Markup` already."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

from tnn_runtime.drawing.words import Name

__all__ = ["Markup", "data_url", "element", "joined"]

_VOID = ("col", "img", "meta")


class Markup(str):
    """HTML that needs no escaping any more, which template engines see by ``__html__``."""

    def __html__(self) -> str:
        """Return it as it is."""
        return str(self)


def joined(pieces: Iterable[str]) -> Markup:
    """Return pieces as HTML; a name among them keeps its own direction of writing."""
    return Markup("".join(map(_escaped, pieces)))


def element(tag: str, /, *children: str | Iterable[str], **attributes: str) -> Markup:
    """Return an element.

    Args:
        tag: What it is.
        *children: What is in it: text, HTML, or several of these.
        **attributes: Its attributes; ``_`` at the end of a name is left out, and others stand for ``-``.
    """
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{pairs}>")
    inner = "".join(joined([child] if isinstance(child, str) else child) for child in children)
    return Markup(f"<{tag}{pairs}>{inner}</{tag}>")


def data_url(image: Image.Image) -> str:
    """Return an image as the data URL of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _escaped(piece: str) -> str:
    if isinstance(piece, Markup):
        return piece
    text = html.escape(piece)
    return f"<bdi>{text}</bdi>" if isinstance(piece, Name) else text
