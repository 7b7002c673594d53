"""What Ray Data is given to classify files: a row for each file, whatever is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

from tnn_runtime import ArtifactError, Classifier, UsageError
from tnn_runtime.ray.data import FileClassifier

BUNDLE = FIXTURES / "bundle-v5"


@pytest.fixture(scope="module")
def classify() -> Iterator[FileClassifier]:
    made = FileClassifier(BUNDLE, "cpu", top_k=2, threads=1)
    yield made
    made._classifier.close()


@pytest.fixture(scope="module")
def good(photos: Path) -> list[str]:
    return sorted(str(path) for path in photos.rglob("*.png"))[:5]


def column(values: list[Any]) -> np.ndarray[Any, Any]:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def contents(paths: list[str]) -> dict[str, Any]:
    return {"path": column(paths), "bytes": column([Path(path).read_bytes() for path in paths])}


def as_paths(paths: list[str]) -> dict[str, Any]:
    return {"path": column(paths)}


@pytest.mark.parametrize("given", [as_paths, contents])
def test_labels_and_scores_are_those_of_predict(
    classify: FileClassifier, good: list[str], given: Callable[[list[str]], dict[str, Any]]
) -> None:
    rows = classify(given(good)).to_pylist()
    assert [list(row) for row in rows] == [["path", "label", "score", "error"]] * len(good)
    assert [row["path"] for row in rows] == good
    with Classifier.load(BUNDLE, "cpu", threads=1) as classifier:
        for row, ranked in zip(rows, classifier.predict(good, 2), strict=True):
            assert row["label"] == [best.label for best in ranked]
            assert row["score"] == pytest.approx([best.score for best in ranked], rel=1e-4)
            assert row["error"] == ""


@pytest.fixture
def bad(tmp_path: Path, good: list[str]) -> dict[str, Any]:
    """Values of a column ``path`` that stand for no image, each with what is wrong with it."""
    whole = Path(good[0]).read_bytes()
    text, half, empty = tmp_path / "text.png", tmp_path / "half.png", tmp_path / "empty.png"
    text.write_text("no image")
    half.write_bytes(whole[: len(whole) // 2])
    empty.touch()
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(odd).write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    return {
        "it is a text file": text,
        "the file ends early": str(half),
        "it has 0 bytes": os.fsencode(empty),
        "does not exist": str(tmp_path / "gone.png"),
        "is a folder": str(tmp_path),
        "is a pipe": str(tmp_path / "pipe.png"),
        r"\udcff.png' is not an image": odd,
        "type NoneType; expected a path": None,
        "type float; expected a path": float("nan"),
    }


def test_a_bad_file_is_a_row_with_an_error(classify: FileClassifier, good: list[str], bad: dict[str, Any]) -> None:
    values = [good[0], *bad.values(), good[1]]
    table = classify({"path": column(values)})
    rows = table.to_pylist()
    assert [bool(row["error"]) for row in rows] == [False, *[True] * len(bad), False]
    for row, (message, value) in zip(rows[1:-1], bad.items(), strict=True):
        assert message in row["error"]
        assert (row["label"], row["score"]) == ([], [])
        assert row["path"].endswith(f"{os.path.basename(os.fsdecode(value))}" if message.startswith("it ") else "")
    assert table.schema == classify({"path": column(good)}).schema, "blocks of Parquet files differ"
    assert classify({"path": column(list(bad.values()))}).schema == table.schema
    assert classify({"path": column([])}).schema == table.schema


@pytest.mark.parametrize("value", [b"", b"no image", b"\x89PNG\r\n\x1a\n", None])
def test_bad_content_is_a_row_with_an_error(classify: FileClassifier, good: list[str], value: bytes | None) -> None:
    batch = contents(good[:3])
    batch["bytes"][1] = value
    rows = classify(batch).to_pylist()
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert [row["path"] for row in rows] == good[:3]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"file": column(["a.png"])}, "columns file; expected 'path'"),
        ({"bytes": column([b""])}, "include_paths=True"),
        ([{"path": "a.png"}], "batch of type list; expected columns"),
    ],
)
def test_a_batch_that_has_no_files_is_told(classify: FileClassifier, batch: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classify(batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bundle": "nothing"}, ArtifactError, "nothing does not exist"),
        ({"top_k": 0}, UsageError, "top_k is 0"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"bundle": FIXTURES / "bundle-v2", "reject": True}, UsageError, "reject"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_batch(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FileClassifier(**{"bundle": BUNDLE, "device": "cpu", **arguments})


@pytest.mark.parametrize("name", ["pyarrow", "ray"])
def test_without_ray_it_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tnn_runtime.ray.data")

    def use() -> None:
        from tnn_runtime.ray.data import FileClassifier

        FileClassifier(BUNDLE, "cpu")

    with pytest.raises(UsageError, match=rf"Ray cannot be imported \(.*{name}.*pip install .*'ray\[data,serve\]"):
        use()
