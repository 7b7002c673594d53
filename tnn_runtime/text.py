"""Names and texts of others, as they are shown on a terminal and written to files."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

__all__ = ["SEPARATOR", "a_head", "csv_line", "one_line", "printable", "why_not_utf8"]

SEPARATOR = "/"
"""What stands between the parents of a class in its name, as in ``animal/cat``."""

_LINE_END = re.compile(r"\s*\n\s*")
_JOINERS = "\u200c\u200d"
"""Controls that words of some languages, and emoji, are made with."""


def a_head(family: str) -> str:
    """Return a head with its article, ``"a linear head"``; names without vowels are spelled: ``"an lvq head"``."""
    vowels = "aeiou" if set("aeiouy") & set(family) else "aefhilmnorsx"
    return f"{'an' if family.startswith(tuple(vowels)) else 'a'} {family} head"


def printable(name: str) -> str:
    """Return a name as it is, or as Python would write it where it cannot be seen on one line."""
    return name if name and all(map(_is_seen, name)) else repr(name)


def one_line(text: str) -> str:
    r"""Return a text on one line, with controls and lone surrogates escaped: ``\x1b``, ``\r``, ``\u202e``."""
    return "".join(
        character if _is_seen(character) else character.encode("unicode_escape").decode()
        for character in _LINE_END.sub(" ", text.strip("\n"))
    )


def why_not_utf8(name: str | Path) -> str:
    """Return what is wrong with a name that cannot be written as UTF-8, and what to do; empty if it can."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return (
            f"{printable(str(name))} is not UTF-8, as the names in checkpoints, bundles and reports have to be; "
            "rename it"
        )
    return ""


def csv_line(cells: Iterable[object]) -> str:
    r"""Return a row of a CSV file without its end, which `csv.reader` reads back as it was, ``\r`` and ``\n`` in it."""
    row = io.StringIO()
    csv.writer(row).writerow(cells)  # Cells with a character of its line end, CR LF, are quoted.
    return row.getvalue().removesuffix("\r\n")


def _is_seen(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
