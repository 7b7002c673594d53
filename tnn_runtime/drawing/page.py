"""A page of images with their explanations: one file, without scripts, that needs no network."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from tnn_runtime.drawing.colours import AGAINST, FOR
from tnn_runtime.drawing.content import Bar, Box, Chart, Content, Face, Heat, content
from tnn_runtime.drawing.heat import framed, legend, overlay, shown_at
from tnn_runtime.drawing.item import Item
from tnn_runtime.drawing.markup import Markup, data_url, element
from tnn_runtime.drawing.words import Name, Words, number

__all__ = ["article", "page", "style"]

_TITLE = "Why the model answers what it answers"
_FACES = "What the strongest features look like: training images that have them most"
_PLACES = "Where this image has the strongest features"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LARGEST, _SMALL, _FACE = 320, 64, 96
_EXEMPLARS = 6


def page(items: Iterable[Item], title: str = _TITLE) -> str:
    """Return an HTML page of images with their explanations.

    It is one file with its pictures inside: it has no scripts, and loads nothing. It is made for screens of any width,
    light or dark, for paper, for eyes that see no colours, and for screen readers.

    Args:
        items: The images.
        title: What the page is called.
    """
    shown = [content(item) for item in items]
    links = [
        element("li", element("a", [one.name, ": "] if one.name else [], one.heading, href=f"#image-{place}"))
        for place, one in enumerate(shown, 1)
    ]
    return "<!doctype html>\n" + element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", style(), Markup(_sheet("page.css"))),
        ),
        element(
            "body",
            element("header", element("h1", title), _key()),
            element("nav", element("ol", links), aria_label="Images") if len(links) > 1 else "",
            element("main", *(_article(one, f"image-{place}", 2) for place, one in enumerate(shown, 1))),
            class_="drawn-page",
        ),
        lang="en",
    )


def article(item: Item, level: int = 2) -> str:
    """Return the part of a page that shows one image, to be put into a page of your own that has the `style`.

    Args:
        item: The image.
        level: Of its heading, 1 to 4.
    """
    return _article(content(item), "", level)


@cache
def style() -> Markup:
    """Return the style sheet of articles, which holds for nothing else on a page."""
    return Markup(f".drawn, .drawn-page {{ --for: {FOR}; --against: {AGAINST}; }}\n{_sheet('article.css')}")


def _sheet(name: str) -> str:
    return files("tnn_runtime.drawing").joinpath(name).read_text(encoding="utf-8")


def _key() -> Markup:
    return element(
        "p",
        element("span", class_="drawn-for", aria_hidden="true"),
        " solid, to the right, with +: speaks for the class. ",
        element("span", class_="drawn-against", aria_hidden="true"),
        " hatched, to the left, with \N{MINUS SIGN}: speaks against it. Numbers are logits.",
        class_="key",
    )


def _article(shown: Content, anchor: str, level: int) -> Markup:
    heading, below = f"h{level}", f"h{level + 1}"
    attributes = {"id": anchor} if anchor else {}
    faces = [_face(face, shown.picture, f"h{level + 2}") for face in shown.faces]
    title = _FACES if any(face.examples for face in shown.faces) else _PLACES
    heats = [_heat(heat, shown.picture) for heat in shown.heats]
    return element(
        "article",
        element(heading, shown.heading),
        element("p", [shown.name], class_="name") if shown.name else "",
        element("p", shown.sentence, class_="sentence"),
        element(
            "div",
            element("div", _picture(shown), *heats, _scores(shown), class_="side"),
            element("div", *map(_chart, shown.charts), class_="charts"),
            class_="with-maps" if heats else "without-maps",
        ),
        element("section", element(below, title), *faces, class_="faces") if faces else "",
        class_="drawn",
        **attributes,
    )


def _picture(shown: Content) -> Markup:
    return element(
        "figure",
        _image(shown.picture, f"the image{' ' if shown.name else ''}{shown.name}, as the model sees it"),
        element("figcaption", "The image as the model sees it"),
    )


def _image(picture: Image.Image, alt: str) -> Markup:
    """Return an image: small ones are enlarged by the page, with each of their pixels."""
    if max(picture.size) > _LARGEST:
        picture = shown_at(picture, _LARGEST)
    kind = {"class_": "coarse"} if max(picture.size) <= _SMALL else {}
    return element("img", src=data_url(picture), alt=alt, width=str(picture.width), height=str(picture.height), **kind)


def _heat(heat: Heat, picture: Image.Image) -> Markup:
    most = float(np.abs(heat.values).max())
    image = overlay(picture, heat.values, _LARGEST)
    return element(
        "figure",
        element("img", src=data_url(image), alt="".join(heat.words), width=str(image.width), height=str(image.height)),
        element(
            "figcaption",
            heat.title,
            ". ",
            heat.words,
            ". Solid line: the strongest tenth for it; dashed: against it.",
            element(
                "span",
                f"{number(-most)} ",
                element("img", src=data_url(legend(160, 12)), alt="against to for", width="160", height="12"),
                f" {number(most)}",
                class_="legend",
            ),
        ),
    )


def _scores(shown: Content) -> Markup:
    rows = [element("tr", element("th", [label], scope="row"), element("td", score)) for label, score in shown.scores]
    return element(
        "table",
        element("caption", "Scores of the best classes"),
        element("thead", element("tr", element("th", "class", scope="col"), element("th", "score", scope="col"))),
        element("tbody", rows),
        class_="scores",
    )


def _chart(chart: Chart) -> Markup:
    return element(
        "table",
        element("caption", element("strong", chart.title), *([" ", element("span", chart.note)] if chart.note else [])),
        element("colgroup", *(element("col", class_=name) for name in ("titles", "bars", "numbers"))),
        element("thead", element("tr", _unseen("what"), element("td", aria_hidden="true"), _unseen("adds"))),
        element("tbody", [_row(chart, bar) for bar in chart.bars]),
        class_="chart",
    )


def _unseen(title: str) -> Markup:
    """Return the head of a column for screen readers alone."""
    return element("th", element("span", title, class_="unseen"), scope="col")


def _row(chart: Chart, bar: Bar) -> Markup:
    length = chart.share(bar)
    left = chart.zero if bar.value >= 0 else chart.zero - length
    drawn = element(
        "span",
        class_=f"bar drawn-{'for' if bar.value > 0 else 'against'}",
        style=f"left:{100 * left:.2f}%;width:{100 * length:.2f}%",
    )
    axis = element("span", class_="axis", style=f"left:{100 * chart.zero:.2f}%")
    return element(
        "tr",
        element("th", bar.title, scope="row"),
        element("td", element("span", axis, drawn if bar.value else "", class_="track"), aria_hidden="true"),
        element("td", number(bar.value)),
    )


def _face(face: Face, picture: Image.Image, heading: str) -> Markup:
    figures = [_example(*one) for one in face.examples[:_EXEMPLARS]]
    if face.heat is not None:
        figures.insert(0, _small(overlay(picture, face.heat.values, _FACE), "".join(face.heat.words), face.heat.title))
    return element(
        "section",
        element(heading, face.title),
        element("p", face.description) if face.description else "",
        element("ul", *figures),
        class_="face",
    )


def _example(picture: Image.Image, box: Box | None, label: Name, value: str) -> Markup:
    alt = f"training image of the class {label}" + (", the place of the feature framed" if box else "")
    return _small(framed(picture, box, _FACE), alt, [label, f" {value}"])


def _small(image: Image.Image, alt: str, caption: Words) -> Markup:
    size = {"width": str(image.width), "height": str(image.height)}
    drawn = element("img", src=data_url(image), alt=alt, **size)
    return element("li", element("figure", drawn, element("figcaption", caption)))
