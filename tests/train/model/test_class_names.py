from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tnn_runtime import UsageError
from tnn_train.model.inputs import read_class_names


@pytest.fixture
def names(tmp_path: Path) -> Path:
    return tmp_path / "names.txt"


@pytest.mark.parametrize(
    "text",
    [
        "0 cat\n1 sea lion\n2 dog\n",
        "0: cat\n1: sea lion\n2: dog\n",
        "0:cat\n1:sea lion\n2:dog\n",
        "1\tcat\n2\tsea lion\n3\tdog\n",
        "1. cat\n2. sea lion\n3. dog\n",
        "000, cat\n001, sea lion\n002, dog\n",
        "cat,0\nsea lion,1\ndog,2\n",
        "2 dog\n0 cat\n1 sea lion\n",
    ],
)
def test_numbers_of_the_lines_give_the_order_and_are_told(
    text: str, names: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_class_names(names, None) == ["cat", "sea lion", "dog"]
    (record,) = caplog.records
    assert f"the lines of {names} are numbered" in record.getMessage()


@pytest.mark.parametrize(
    "lines",
    [
        ["1 euro", "2 euro"],
        ["room 1", "room 2"],
        ["001.Black_footed_Albatross", "002.Laysan_Albatross"],
        ["0_cat", "1_dog"],
        ["n01440764 tench", "n01443537 goldfish"],
        ["10", "7"],
    ],
)
def test_numbers_that_belong_to_the_names_stay(lines: list[str], names: Path, caplog: pytest.LogCaptureFixture) -> None:
    names.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert read_class_names(names, None) == lines
    assert not caplog.records


def test_other_numbers_are_told_and_stay(names: Path, caplog: pytest.LogCaptureFixture) -> None:
    names.write_text("0 cat\n1 dog\n3 ship\n")
    with caplog.at_level(logging.WARNING):
        assert read_class_names(names, None) == ["0 cat", "1 dog", "3 ship"]
    assert "has a number, as '0 cat'; these are not those of 3 classes" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ncat\n", "line 2: got 'cat', as in line 1; expected each class once"),
        ("cat\n\ndog\n  cat \n", "line 4: got 'cat', as in line 1"),
        ("\ufeffcat\ndog\ncat\n", "line 3: got 'cat', as in line 1"),
        ("", "has no class names; expected a text file with one class name a line"),
        ("\n \n", "has no class names"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(text: str, message: str, names: Path) -> None:
    names.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"names\.txt,? {message}"):
        read_class_names(names, None)
