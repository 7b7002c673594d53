"""One picture of an image with its explanation, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tnn_runtime.drawing.colours import AGAINST, FAINT, FOR, INK, PAPER, SOFT
from tnn_runtime.drawing.content import Bar, Chart, Content, Face, Heat, content
from tnn_runtime.drawing.fonts import DIRECTION, font_for, in_letters, isolated, wrapped
from tnn_runtime.drawing.heat import framed, legend, overlay, shown_at
from tnn_runtime.drawing.item import Item
from tnn_runtime.drawing.words import Name, Words, number
from tnn_runtime.explain.exemplars import Exemplars
from tnn_runtime.explain.result import Explanation

__all__ = ["draw"]

_MARGIN, _GAP = 48, 48
_SIDE = 420
_INNER = 3 * _SIDE + 2 * _GAP
_WIDTH = _INNER + 2 * _MARGIN
_HEADING, _LARGE, _TEXT, _SMALL = 46, 30, 25, 22
_LEADING = 1.35
_TITLES, _NUMBERS = 0.38, 110
_THICK, _HATCH = 26, 9
_FACE, _EXEMPLARS = 150, 7


class _Block(NamedTuple):
    """Something of a height in pixels that is painted at a place."""

    height: int
    paint: Callable[[Image.Image, int, int], None]


def draw(
    explanation: Explanation | Sequence[Explanation],
    picture: Image.Image | NDArray[np.uint8],
    exemplars: Mapping[int, Exemplars] | None = None,
    *,
    name: str = "",
    rejected: bool = False,
    reject_score: float | None = None,
) -> Image.Image:
    """Return a picture of an image with its explanation, in RGB, 1452 pixels wide.

    It shows the image, the scores of the best classes, what speaks for the class and against it, what sets it apart
    from the class that it is compared with, and, where these are known, the maps and the exemplars of the strongest
    features. Names are written in the fonts of this machine; what none of them has is told in letters.

    Args:
        explanation: What `Classifier.explain` returned for the image, or one explanation of it.
        picture: As for `Item`, as are the others.
        exemplars: By the index of the feature.
        name: What the image is called.
        rejected: Whether the answer is rejected.
        reject_score: How sure the model is.

    Raises:
        UsageError: If there is no explanation.
    """
    shown = content(Item(explanation, picture, exemplars or {}, name, rejected, reject_score))
    blocks = [
        _text(shown.heading, _HEADING, _INNER, bold=True),
        *([_text([shown.name], _SMALL, _INNER, SOFT)] if shown.name else []),
        _space(8),
        _text(shown.sentence, _LARGE, _INNER),
        _space(24),
        *(_with_maps(shown) if shown.heats else [_without_maps(shown)]),
        *(_face(face, shown.picture) for face in shown.faces),
        _text(_KEY, _SMALL, _INNER, SOFT),
    ]
    image = Image.new("RGB", (_WIDTH, _height(blocks) + 2 * _MARGIN), PAPER)
    _paint(blocks, image, _MARGIN, _MARGIN)
    return image


_KEY: Words = [
    "Solid, to the right, with +: speaks for the class. Hatched, to the left, with \N{MINUS SIGN}: speaks against it. "
    "Numbers are logits."
]


_HAVE_IT, _IS_HERE = ": training images that have it most", ": where this image has it"


def _without_maps(shown: Content) -> _Block:
    """Return the picture and the scores with the charts to their right."""
    charts = [_chart(chart, _INNER - _SIDE - _GAP) for chart in shown.charts]
    return _beside(_SIDE + _GAP, _stack(_picture(shown), _scores(shown)), _stack(*charts))


def _with_maps(shown: Content) -> list[_Block]:
    """Return the picture and its maps in a row, with the scores where there is room, and below them pairs of charts."""
    heats = [_heat(heat, shown.picture) for heat in shown.heats]
    first, scores = _picture(shown), _scores(shown)
    row = [first, *heats, scores] if len(heats) == 1 else [_stack(first, scores), *heats]
    width = (_INNER - _GAP) // 2
    charts = [_chart(chart, width) for chart in shown.charts]
    pairs = [_beside(width + _GAP, *charts[place : place + 2]) for place in range(0, len(charts), 2)]
    return [_beside(_SIDE + _GAP, *row), *pairs]


def _height(blocks: Iterable[_Block]) -> int:
    return sum(block.height for block in blocks)


def _paint(blocks: Iterable[_Block], image: Image.Image, x: int, y: int) -> None:
    for block in blocks:
        block.paint(image, x, y)
        y += block.height


def _stack(*blocks: _Block) -> _Block:
    return _Block(_height(blocks), lambda image, x, y: _paint(blocks, image, x, y))


def _beside(step: int, *blocks: _Block) -> _Block:
    """Return blocks in a row, each so many pixels to the right of the one before."""

    def paint(image: Image.Image, x: int, y: int) -> None:
        for place, block in enumerate(blocks):
            block.paint(image, x + place * step, y)

    return _Block(max((block.height for block in blocks), default=0), paint)


def _space(height: int) -> _Block:
    return _Block(height, lambda image, x, y: None)


def _text(words: Words, size: int, width: int, colour: str = INK, *, bold: bool = False) -> _Block:
    """Return a text in lines of a width, all in the font that has most of its letters."""
    text = "".join(isolated(word) if isinstance(word, Name) else word for word in words)
    font = font_for(text, size, bold=bold)
    lines, step = wrapped(in_letters(text, font), font, width), round(size * _LEADING)

    def paint(image: Image.Image, x: int, y: int) -> None:
        pen = ImageDraw.Draw(image)
        for row, line in enumerate(lines):
            pen.text((x, y + row * step), line, colour, font, direction=DIRECTION)

    return _Block(step * len(lines), paint)


def _shown(picture: Image.Image) -> _Block:
    def paint(image: Image.Image, x: int, y: int) -> None:
        image.paste(picture, (x, y))
        ImageDraw.Draw(image).rectangle((x, y, x + picture.width - 1, y + picture.height - 1), outline=FAINT)

    return _Block(picture.height + 6, paint)


def _picture(shown: Content) -> _Block:
    caption = _text(["The image as the model sees it"], _SMALL, _SIDE, SOFT)
    return _stack(_shown(shown_at(shown.picture, _SIDE)), caption, _space(24))


def _heat(heat: Heat, picture: Image.Image) -> _Block:
    most = number(float(np.abs(heat.values).max()))
    caption = [*heat.title, ". ", *heat.words, ". Solid line: the strongest tenth for it; dashed: against it."]
    scale = legend(_SIDE - 2 * _NUMBERS, 24)
    low = _text([most.replace("+", "\N{MINUS SIGN}")], _SMALL, _NUMBERS, SOFT)
    high = _text([most], _SMALL, _NUMBERS, SOFT)

    def paint(image: Image.Image, x: int, y: int) -> None:
        low.paint(image, x, y)
        image.paste(scale, (x + _NUMBERS, y + 3))
        high.paint(image, x + _SIDE - _NUMBERS + 12, y)

    shown = _shown(overlay(picture, heat.values, _SIDE))
    return _stack(shown, _Block(36, paint), _text(caption, _SMALL, _SIDE, SOFT), _space(24))


def _scores(shown: Content) -> _Block:
    rows = [_row([label], score, _SIDE, _SIDE - _NUMBERS) for label, score in shown.scores]
    return _stack(_text(["Scores of the best classes"], _TEXT, _SIDE, bold=True), *rows, _space(24))


def _row(title: Words, value: str, width: int, title_width: int) -> _Block:
    """Return a title to the left and a value to the right, below a line."""
    left = _text(title, _SMALL, title_width)
    font = font_for(value, _SMALL)
    text = in_letters(value, font)

    def paint(image: Image.Image, x: int, y: int) -> None:
        pen = ImageDraw.Draw(image)
        pen.line((x, y, x + width, y), FAINT)
        left.paint(image, x, y + 4)
        pen.text((x + width - font.getlength(text), y + 4), text, INK, font)

    return _Block(left.height + 8, paint)


def _chart(chart: Chart, width: int) -> _Block:
    note = [_text(chart.note, _SMALL, width, SOFT)] if chart.note else []
    bars = [_bar(chart, bar, width) for bar in chart.bars]
    return _stack(_text(chart.title, _TEXT, width, bold=True), *note, _space(6), *bars, _space(32))


def _bar(chart: Chart, bar: Bar, width: int) -> _Block:
    """Return a row with a bar between its title and its value."""
    titles = round(_TITLES * width)
    row = _row(bar.title, number(bar.value), width, titles)
    track = width - titles - _NUMBERS - 16
    zero = titles + 16 + round(track * chart.zero)
    length = round(track * chart.share(bar))

    def paint(image: Image.Image, x: int, y: int) -> None:
        row.paint(image, x, y)
        pen, axis = ImageDraw.Draw(image), x + zero
        top = y + (row.height - _THICK) // 2
        bottom = top + _THICK
        if bar.value > 0:
            pen.rectangle((axis, top, axis + length, bottom), FOR)
        elif bar.value < 0:
            _hatched(image, (axis - length, top, axis, bottom))
        pen.line((axis, y + 1, axis, y + row.height - 1), INK, 2)

    return _Block(row.height, paint)


def _hatched(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Fill a box with slanted lines within a frame."""
    left, top, right, bottom = box
    width, height = right - left + 1, bottom - top + 1
    tile = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(tile)
    for start in range(-height, width, _HATCH):
        pen.line((start, height, start + height, 0), AGAINST, _HATCH // 2)
    pen.rectangle((0, 0, width - 1, height - 1), outline=AGAINST, width=2)
    image.paste(tile, (left, top))


def _face(face: Face, picture: Image.Image) -> _Block:
    """Return the title of a feature, where this image has it, and training images that have it, in a row."""
    figures = [(framed(image, box, _FACE), [label, f" {value}"]) for image, box, label, value in face.examples]
    if face.heat is not None:
        figures.insert(0, (overlay(picture, face.heat.values, _FACE), face.heat.title))
    columns = [
        _stack(_shown(image), _text(caption, _SMALL, _FACE, SOFT)) for image, caption in figures[: _EXEMPLARS + 1]
    ]

    description = [_text(face.description, _SMALL, _INNER, SOFT)] if face.description else []
    title = _text([*face.title, _HAVE_IT if face.examples else _IS_HERE], _TEXT, _INNER, bold=True)
    return _stack(title, *description, _space(6), _beside(_FACE + 20, *columns), _space(24))
