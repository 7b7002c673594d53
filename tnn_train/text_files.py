"""Text files that people write, such as class names, tables and configurations, decoded in one place."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path
from typing import NamedTuple

from tnn_runtime.errors import TnnError, UsageError

__all__ = ["Line", "Row", "read_lines", "read_rows", "read_text"]

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks, and the encodings that they tell; a file without one is UTF-8."""


class Line(NamedTuple):
    """A line of a text file.

    Args:
        number: Its place in the file, counted from 1.
        text: What it says, without blanks at its ends.
    """

    number: int
    text: str


class Row(NamedTuple):
    """A row of a table.

    Args:
        line: The line of the file that it ends in, counted from 1.
        cells: What its cells say, without blanks at their ends.
    """

    line: int
    cells: list[str]


def read_text(path: Path, expected: str, error: type[TnnError] = UsageError) -> str:
    r"""Return the text of a file, without a byte order mark and with ``\n`` at the end of each line.

    Args:
        path: The file: UTF-8, or UTF-16 with a byte order mark.
        expected: What the file should be, for the error.
        error: The class of the error.

    Raises:
        TnnError: If the file cannot be read as text; the message names it, and the line.
    """
    try:
        content = path.read_bytes()
        text = content.decode(next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8"))
        if "\0" in text:
            raise ValueError("it has zero bytes, as UTF-16 without a byte order mark has; save it as UTF-8")
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read ({_reason(problem)}); expected {expected}") from problem
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, expected: str, error: type[TnnError] = UsageError) -> list[Line]:
    """Return the lines of a file that are not blank; arguments and errors are those of `read_text`."""
    lines = read_text(path, expected, error).split("\n")
    return [Line(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_rows(path: Path, expected: str, error: type[TnnError] = UsageError) -> list[Row]:
    """Return the rows of a CSV file that are not blank; arguments and errors are those of `read_text`."""
    reader = csv.reader(io.StringIO(read_text(path, expected, error)), strict=True)
    try:
        rows = [Row(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as problem:
        raise error(f"{path}, line {reader.line_num}, cannot be read ({problem}); expected {expected}") from problem
    return [row for row in rows if any(row.cells)]


def _reason(problem: OSError | ValueError) -> str:
    if isinstance(problem, UnicodeDecodeError):
        line = problem.object.count(b"\n", 0, problem.start) + 1
        return f"line {line} is not {problem.encoding.upper()}: {problem.reason}; save it as UTF-8"
    return str(getattr(problem, "strerror", None) or problem)
