"""Every text file that a person writes is read alike, whatever program wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tnn_runtime import UsageError
from tnn_train import DataConfig
from tnn_train.commands.arguments import Configuration, parse
from tnn_train.heads.tversky.attributes import Attribute, read_attributes
from tnn_train.model.inputs import read_class_names


@dataclass(frozen=True, kw_only=True)
class Options(Configuration):
    """Some command.

    Args:
        config: A file.
    """

    config: Path | None = None


READERS: dict[str, Callable[[Path], Any]] = {
    "class names": lambda path: read_class_names(path, None),
    "attributes": lambda path: read_attributes(path, ("cat", "dög")),
    "configuration": lambda path: parse(Options, "tnn-train", "Train.", ["--config", str(path)]).data,
}
FILES: dict[str, tuple[str, Any]] = {
    "class names": ("Roßkastanie\nsweet chestnut\n", ["Roßkastanie", "sweet chestnut"]),
    "attributes": ("class,swims\ncat,0\ndög,1\n", (Attribute((1,), "swims"),)),
    "configuration": ('[data]\nsource = "Bäume"\nlimit = 3\n', DataConfig("Bäume", limit=3)),
}
SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16 of Windows": lambda text: b"\xff\xfe" + text.replace("\n", "\r\n").encode("utf-16-le"),
    "UTF-16 in the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "lines of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "lines of old Macs": lambda text: text.replace("\n", "\r").encode(),
    "blank lines": lambda text: ("\n" + text.replace("\n", "\n \t\n")).encode(),
    "a mark and blank lines": lambda text: (text + "\r\n\r\n").encode("utf-8-sig"),
    "no last line end": lambda text: text.rstrip("\n").encode(),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_says_the_same(spelling: str, kind: str, tmp_path: Path) -> None:
    text, expected = FILES[kind]
    (tmp_path / "file").write_bytes(SPELLINGS[spelling](text))
    assert READERS[kind](tmp_path / "file") == expected


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\nch\xe2teau\n", "line 2 is not UTF-8"),
        (b"\xef\xbb\xbfcat\r\ndog\r\n\xff", "line 3 is not UTF-8"),
        ("cat\ndog\n".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfec", "line 1 is not UTF-16"),
        (None, "No such file or directory"),
    ],
    ids=["Latin-1", "a damaged end", "UTF-16 without a mark", "half of a UTF-16 letter", "no file"],
)
def test_what_is_no_text_is_named_with_its_line(kind: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(
        UsageError, match=rf"^{re.escape(str(tmp_path / 'file'))} cannot be read \(.*{reason}.*; expected"
    ):
        READERS[kind](tmp_path / "file")


def test_a_quote_that_does_not_end_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('class,swims\n"cat,0\ndog,1\n')
    with pytest.raises(UsageError, match="file, line 3, cannot be read .*; expected classes, hierarchy, or a CSV file"):
        read_attributes(tmp_path / "file", ("cat", "dog"))
