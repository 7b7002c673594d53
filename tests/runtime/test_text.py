from __future__ import annotations

import csv
import io
import os

import pytest

from tnn_runtime.text import a_head, csv_line, one_line, printable, why_not_utf8

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\rb", r"a\rb"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("\u2066x\u2028y\x85", r"\u2066x\u2028y\x85"),
        (NOT_UTF8, r"caf\udce9"),
        ("two\n  lines\r\nor three\n", "two lines or three"),
        ("  a table  of words", "  a table  of words"),
        ("café 猫\u3000犬 👩\u200d🔬", "café 猫\u3000犬 👩\u200d🔬"),
    ],
)
def test_a_line_shows_what_a_terminal_would_act_on(text: str, line: str) -> None:
    assert one_line(text) == line
    assert one_line(line) == line


@pytest.mark.parametrize(
    ("name", "shown"), [("a b.png", "a b.png"), ("a\nb", r"'a\nb'"), (NOT_UTF8, r"'caf\udce9'"), ("", "''")]
)
def test_a_name_is_quoted_where_it_cannot_be_seen(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("linear", "a linear head"),
        ("lvq", "an lvq head"),
        ("ensemble", "an ensemble head"),
        ("logic", "a logic head"),
        ("xyz", "a xyz head"),
        ("rbf", "an rbf head"),
        ("gmm", "a gmm head"),
        ("toy-image", "a toy-image head"),
    ],
)
def test_a_head_has_its_article(family: str, told: str) -> None:
    assert a_head(family) == told


def test_a_name_that_is_not_utf8_is_told_with_the_remedy() -> None:
    assert why_not_utf8("café") == ""
    assert why_not_utf8(NOT_UTF8).startswith(r"'caf\udce9' is not UTF-8")
    assert why_not_utf8(NOT_UTF8).endswith("; rename it")


@pytest.mark.parametrize("cell", ["a\rb", "a\nb", "a\r\nb", 'say "no"', "a,b", " a ", "=1+1", "'", ""])
def test_a_row_of_a_csv_file_is_read_back_as_it_was(cell: str) -> None:
    file = io.StringIO(f"{csv_line([cell, 'next'])}\n{csv_line(['1', cell])}\n", newline="")
    assert list(csv.reader(file)) == [[cell, "next"], ["1", cell]]
