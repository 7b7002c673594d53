"""What a head says of itself in a report: plain values, which `tnn_train.report` turns into a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Block", "Card", "Cards", "Image", "Node", "Sample", "Section", "Table", "Text", "Tree"]


class Sample:
    """Training images as a head sees them.

    Args:
        labels: Their classes, int64 ``[n]``.
        class_names: One name for each class.
        embed: Returns what the head takes of them, ``[n, D]`` or ``[n, D, h, w]``; called once, if it is asked for.
    """

    def __init__(self, labels: NDArray[np.int64], class_names: Sequence[str], embed: Callable[[], Tensor]) -> None:
        self.labels = labels
        self.class_names = class_names
        self._embed = embed

    @cached_property
    def embeddings(self) -> Tensor:
        """The embeddings, ``[n, D]``, or the maps, ``[n, D, h, w]``."""
        return self._embed()


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: Plain text.
        is_aside: Whether it is an explanation beside the matter, to be set in a soft colour.
    """

    kind: ClassVar[str] = "text"
    text: str
    is_aside: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        rows: Cells as text, as many in each row.
        header: Names of the columns; none for a table without a head.
        prose: The columns that hold text, and not numbers.
    """

    kind: ClassVar[str] = "table"
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    prose: Sequence[int] = ()


@dataclass(frozen=True)
class Image:
    """A training image, or a learned one.

    Args:
        place: Its position in the sample; -1 if it is not of the sample.
        caption: What stands below it, a line each.
        is_marked: Whether the first line is to strike, such as a class that is not the expected one.
        pixels: The image itself, uint8 ``[H, W, C]``; ``None`` for one of the sample.
    """

    place: int
    caption: Sequence[str]
    is_marked: bool = False
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Card:
    """A thing with images.

    Args:
        title: What it is.
        summary: What is to be said of it first.
        images: Images that show it.
        details: What is to be said below the images.
        items: A list, after the details.
        warning: What is wrong with it, if anything is.
    """

    title: str
    summary: str
    images: Sequence[Image] = ()
    details: str = ""
    items: Sequence[str] = ()
    warning: str = ""


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Node:
    """A part of a tree.

    Args:
        title: What it is called.
        note: What is to be said of it, in a soft colour.
        children: The parts below it.
        is_open: Whether these are shown at first.
    """

    title: str
    note: str = ""
    children: Sequence[Node] = ()
    is_open: bool = False


@dataclass(frozen=True)
class Tree:
    """A tree, drawn as a list of lists that can be folded."""

    kind: ClassVar[str] = "tree"
    nodes: Sequence[Node]


@dataclass(frozen=True)
class Section:
    """A part of a report with a title.

    Args:
        title: The title.
        blocks: What stands below it, sections of their own included.
    """

    kind: ClassVar[str] = "section"
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """What a link to it is called."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


Block: TypeAlias = Text | Table | Cards | Tree | Section
