"""Colours that differ for everybody: blue against, amber for, and a scale between them that is uniform to the eye.

The scale goes straight through the space OKLab (Björn Ottosson, 2020), in which equal distances look equally large. Its
lightness rises all the way, so that it reads in grey, and to eyes that lack one kind of cones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGAINST", "FAINT", "FOR", "INK", "PAPER", "SOFT", "scale"]

INK, SOFT, FAINT, PAPER = "#1b1f27", "#5a6472", "#d5dae2", "#ffffff"
FOR, AGAINST = "#c76b00", "#2c5aa8"
"""What speaks for a class and against it: solid amber to the right, hatched blue to the left."""

_MIDDLE, _REACH = 0.6, 0.24
"""Lightness of the scale at 0, and how much more of it there is at 1; from 0 to 1 is black to white."""

_HUES = {-1: (0.16, math.radians(262)), 1: (0.165, math.radians(85))}
"""Chroma and hue at both ends."""

_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def scale(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the colours of values from -1 (against) to 1 (for), uint8 ``[..., 3]``; what is beyond is cut."""
    values = np.clip(np.asarray(values, np.float64), -1, 1)
    ends = {sign: chroma * np.array([math.cos(hue), math.sin(hue)]) for sign, (chroma, hue) in _HUES.items()}
    ab = np.abs(values)[..., None] * np.where(values[..., None] < 0, ends[-1], ends[1])
    lab = np.concatenate([_MIDDLE + _REACH * values[..., None], ab], axis=-1)
    linear = np.clip((lab @ _LMS.T) ** 3 @ _RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)
