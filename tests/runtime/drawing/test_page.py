"""Pages that need no network and no colours, and pictures: whatever names are in them."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from drawn import PICTURE, exemplars, explanation, item

from tnn_runtime.drawing import Item, article, draw, fonts, page, style
from tnn_runtime.drawing.content import Bar, Chart, content
from tnn_runtime.drawing.image import _INNER, _MARGIN
from tnn_runtime.explain.exemplars import Exemplars
from tnn_runtime.explain.result import Maps

NAMES = [
    "7",
    "<script>alert('x')</script> & \"co\"",
    "</style><img src=x onerror=alert(1)>",
    "מכונית ירוקה",
    "🦊 fox 猫 👩‍🚀",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "a\nb\x1b[31m\u202egnp",
    "",
]
VOID = {"img", "meta", "col"}
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "article",
    "section",
    "div",
    "span",
    "bdi",
}
ELEMENTS |= {"h1", "h2", "h3", "h4", "p", "strong", "figure", "figcaption", "img", "ul", "li", "bdi"}
ELEMENTS |= {"table", "caption", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Reader(HTMLParser):
    """Reads a page as a browser does, and keeps its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", text))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_are_shown_and_do_nothing(name: str) -> None:
    read = Reader(page([item(name, f"not {name}")]))
    assert not read.open
    assert {tag for tag, _ in read.elements} <= ELEMENTS
    assert not any(key.startswith("on") for _, attributes in read.elements for key in attributes)
    shown = content(item(name)).name.removesuffix("/0.png")
    assert not set("\n\x1b\u202e") & {*shown}
    assert {text for tag, text in read.texts if tag == "bdi"} >= ({shown} if shown else set())


def test_a_page_loads_nothing() -> None:
    text = page([item(), item()])
    read = Reader(text)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in read.all("img"))
    assert not re.findall(r"https?:|//|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in read.all("meta")


def test_a_page_is_read_aloud() -> None:
    read = Reader(page([item(), item()]))
    assert read.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in read.all("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table")) == 2 * 5
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    anchors = {attributes["id"] for attributes in read.all("article")}
    assert {f"#{anchor}" for anchor in anchors} == {link["href"] for link in read.all("a")}


def test_a_page_tells_all_in_words_too() -> None:
    text = "".join(text for _, text in Reader(page([item(rejected=True, reject_score=0.25)])).texts)
    text = text.replace("\N{MINUS SIGN}", "-")
    for words in (
        "Rejected: 7 (87.5%)",
        "7 rather than 9: it has “7” (+1.25) and feature 2 (+0.50); for 9 speaks that it has “9” (-0.50).",
        "Where 7 comes from. Most speaks for 7 at the bottom right, most against it at the top left",
        "Where 7 rather than 9 comes from",
        "shared with the prototype",
        "Seen in 94% of 7, 3% of 9",
        "like 9",
        "87.5%",
        "12.5%",
    ):
        assert words in text, words


@pytest.mark.parametrize("faces", [{}, {0: exemplars()}, {1: exemplars()}], ids=["none", "its own", "another's"])
def test_maps_of_features_are_shown_where_they_tell_a_place(faces: dict[int, Exemplars]) -> None:
    one = explanation(maps=True)  # lacks feature 1
    found = {face.title[0]: face for face in content(Item(one, PICTURE, faces)).faces}
    assert [title for title, face in found.items() if face.heat] == ["3 or 7", "feature 2"]
    assert [title for title, face in found.items() if face.examples] == [one.features[index].title for index in faces]
    text = page([Item(one, PICTURE, faces)])
    assert text.count("in this image") == 2
    assert ("training images that have them most" in text) == bool(faces)


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (-4, 4, "Most speaks for 7 at the bottom right, most against it at the top left"),
        (-1, 6, "Most speaks for 7 at the bottom right"),
        (-6, 1, "Most speaks against it at the top left"),
        (2, 6, "Most speaks for 7 at the bottom right"),
    ],
)
def test_a_map_is_told_as_it_is_outlined(least: float, most: float, expected: str) -> None:
    values = np.linspace(least, most, 12, dtype=np.float32).reshape(3, 4)
    maps = Maps(values, np.stack([values] * 2), np.stack([values] * 3))
    (heat,) = content(Item(dataclasses.replace(explanation(), maps=maps), PICTURE)).heats
    assert "".join(heat.words) == expected


def test_maps_that_are_the_same_everywhere_are_not_drawn() -> None:
    even = Maps(np.full((2, 2), -3.5, np.float32), np.zeros((2, 2, 2), np.float32), np.ones((3, 2, 2), np.float32))
    shown = content(Item(dataclasses.replace(explanation(), maps=even), PICTURE))
    assert not shown.heats
    assert not shown.faces


@pytest.mark.parametrize(
    "rule",
    [
        "prefers-color-scheme: dark",
        "@media print",
        "overflow-wrap: anywhere",
        "@media (max-width",
        "repeating-linear-gradient",
        "print-color-adjust: exact",
    ],
)
def test_the_style_is_for_paper_phones_and_the_dark(rule: str) -> None:
    assert rule in style()


def test_an_article_goes_into_other_pages() -> None:
    found = article(item(), 3)
    assert found.startswith('<article class="drawn"><h3>')
    assert found.__html__() == found  # type: ignore[attr-defined]
    for rule in re.sub(r"@media[^{]*{", "", style()).split("}"):
        assert all(
            selector.strip().startswith((".drawn", "")) and ".drawn" in selector
            for selector in re.split(r",(?![^(]*\))", rule.partition("{")[0])
            if selector.strip()
        ), rule


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("maps", [False, True])
def test_nothing_leaves_the_picture(name: str, maps: bool) -> None:
    one = item(name, f"{name}?")
    explanations: Any = one.all if maps else [explanation(name, f"{name}?")]
    drawn = np.asarray(draw(explanations, PICTURE, one.exemplars, name=name, rejected=True))
    assert drawn.shape[1] == _INNER + 2 * _MARGIN
    for side in (drawn[:, : _MARGIN - 8], drawn[:, 8 - _MARGIN :], drawn[: _MARGIN - 8], drawn[8 - _MARGIN :]):
        assert (side == 255).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Café", "Cafe"), ("\N{MINUS SIGN}1", "-1"), ("🦊", "[fox face]"), ("猫", "[U+732B]"), ("plain", "plain")],
)
def test_what_no_font_has_is_told_in_letters(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_NAMES", ())
    monkeypatch.setattr(fonts, "_BOLD", ())
    fonts._fonts.cache_clear()
    try:
        assert fonts.in_letters(text, fonts.font_for(text, 20)) == expected
    finally:
        fonts._fonts.cache_clear()


@pytest.mark.parametrize("values", [(3.0, 1.0), (2.0, -2.0), (-1.0, -3.0), (0.0, 0.0)])
def test_bars_are_as_long_as_their_values(values: tuple[float, float]) -> None:
    chart = Chart([], [], tuple(Bar([], value) for value in values))
    for bar in chart.bars:
        assert 0 <= chart.share(bar) <= (1 - chart.zero if bar.value > 0 else chart.zero) + 1e-12
    shares = [chart.share(bar) for bar in chart.bars]
    assert shares[0] * abs(values[1]) == pytest.approx(shares[1] * abs(values[0]))


def test_the_bars_that_set_apart_add_up_to_the_difference() -> None:
    found = content(item())
    difference = item().explanation.contrast.difference  # type: ignore[union-attr]
    for chart in found.charts[:2]:
        assert sum(bar.value for bar in chart.bars) == pytest.approx(difference)


def test_where_features_do_not_add_up_the_page_says_so() -> None:
    one = item()
    contrast = dataclasses.replace(one.explanation.contrast, is_sum=False)  # type: ignore[type-var]
    alone = Item(dataclasses.replace(one.explanation, contrast=contrast), PICTURE)
    (chart, *_), (sums, *_) = content(alone).charts, content(one).charts
    assert "These do not add up" in str(chart.note)
    assert "add up to that" not in str(chart.note)
    assert "add up to that" in str(sums.note)
    assert [str(bar.title) for bar in chart.bars if "only together" in str(bar.title)]
    assert sum(bar.value for bar in chart.bars) == pytest.approx(sum(bar.value for bar in sums.bars))


def test_a_lone_explanation_is_drawn() -> None:
    assert "87.5%" in page([Item(explanation(), PICTURE)])
    assert draw(explanation(), PICTURE).mode == "RGB"
