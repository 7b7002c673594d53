"""Every command looks at its output path before it works: what it would do then fails here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NoReturn

import pytest

FOLDERS = {
    "train": (["train", "--data", "digits", "--out"], "tnn_train.commands.train.load_data"),
    "sweep": (["train", "sweep", "--data", "digits", "--out"], "tnn_train.commands.sweep.load_data"),
    "unfold": (["train", "unfold", "RUN", "-o"], "tnn_train.commands.unfold.load_checkpoint"),
    "export": (["export", "RUN", "-o"], "tnn_export.commands.export.load_with_results"),
    "import": (
        ["export", "import", "net.pth", "--from", "linear", "--backbone", "resnet18", "--images", ".", "-o"],
        "tnn_export.commands.importing.read_class_names",
    ),
    "pair": (
        ["export", "pair", "--backbone", "resnet18", "--classes", "3", "-o"],
        "tnn_export.commands.pair.export_pair",
    ),
    "triton": (["export", "triton", "BUNDLE", "-o"], "tnn_export.triton.repository.open_bundle"),
    "plots": (["runtime", "bench", "A", "B", "--plots"], "tnn_runtime.commands.bench.compare_bundles"),
}
FILES = {
    "check": (["export", "check", "BUNDLE", "--json"], "tnn_export.commands.export.check_bundle"),
    "bench": (["runtime", "bench", "A", "B", "--json"], "tnn_runtime.commands.bench.compare_bundles"),
    "compare": (["train", "compare", "RUN", "--out"], "tnn_train.commands.compare.compare_runs"),
}

AMONG_IMAGES = {
    "train": (["train", "--data", "images", "--out"], "tnn_train.commands.train.load_data"),
    "sweep": (["train", "sweep", "--data", "images", "--out"], "tnn_train.commands.sweep.load_data"),
    "unfold": (
        ["train", "unfold", "net.pth", "--backbone", "resnet18", "--images", "images", "-o"],
        "tnn_train.commands.unfold.open_folder",
    ),
    "export": (["export", "RUN", "--images", "images", "-o"], "tnn_export.commands.export.load_with_results"),
    "calibration": (["export", "RUN", "--calibration", "images", "-o"], "tnn_export.commands.export.load_with_results"),
    "import": (
        ["export", "import", "net.pth", "--from", "linear", "--backbone", "resnet18", "--images", "images", "-o"],
        "tnn_export.commands.importing.open_folder",
    ),
}


def fail(*arguments: Any, **options: Any) -> NoReturn:
    raise AssertionError("the work has begun")


def refusal(
    words: list[str], work: str, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Return the error that a command prints, whose work must not begin."""
    module, _, name = work.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, fail)
    assert importlib.import_module(f"tnn_{words[0]}.__main__").main([*words[1:], path]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert ".partial" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("path", ["file", "file/out", "/proc/out", "x" * 250])
def test_a_folder_is_checked_first(
    command: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("precious")
    words, work = FOLDERS[command]
    error = refusal(words, work, path, capsys, monkeypatch)
    assert path in error
    assert "choose a" in error
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("path", [".", "file/x", "nowhere/x", "/proc/x", "/dev/null", "x" * 250])
def test_a_file_is_checked_first(
    command: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("precious")
    words, work = FILES[command]
    error = refusal(words, work, path, capsys, monkeypatch)
    assert path in error
    assert f"choose another file for {words[-1]}" in error
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", AMONG_IMAGES)
@pytest.mark.parametrize("path", ["images/out", "images/cat/out", "images/train/out", "./images/../images/out"])
def test_nothing_is_written_among_images(
    command: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images/cat").mkdir(parents=True)
    words, work = AMONG_IMAGES[command]
    error = refusal(words, work, path, capsys, monkeypatch)
    assert "lies among the images, in images, where it would be taken for a class; choose another one" in error
    assert [file.name for file in Path("images").rglob("*")] == ["cat"]
