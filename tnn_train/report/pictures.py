"""Pictures as data URLs, so that a page is one file."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FEW_PIXELS", "figure_url", "image_url"]

FEW_PIXELS = 32
"""Images of up to so many pixels a side are shown with each of their pixels."""

_DPI = 144
_SIDE = 96


def figure_url(figure: Figure) -> str:
    """Return a figure as the data URL of a PNG that shows the page's background."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names of classes may be in any script; matplotlib draws a box for a letter that its font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=_DPI, transparent=True)
    return _url("png", buffer)


def image_url(image: NDArray[np.uint8]) -> str:
    """Return an image, uint8 ``[H, W, C]`` with C = 1 or 3, as the data URL of a thumbnail of up to 96 pixels a side.

    Images of up to `FEW_PIXELS` a side are PNG, which keeps each of them; others are JPEG.
    """
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    picture.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(picture.size) <= FEW_PIXELS else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return _url(kind, buffer)


def _url(kind: str, content: io.BytesIO) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()
