"""The main job as a newcomer would do it: commands only, from images to predictions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest

from tnn_export.__main__ import main as tnn_export
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_train.__main__ import main as tnn_train


def go(data: list[str], test_images: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """Train, export and run both heads; return the Tversky test accuracy."""
    accuracy = {}
    for head in ("tversky", "linear"):
        run, bundle = tmp_path / head, tmp_path / f"{head}-bundle"
        assert (
            tnn_train([*data, "--head", head, "--out", str(run), "--backbone", "tiny", "--learning-rate", "0.01"]) == 0
        )
        assert tnn_export([str(run / "best"), "-o", str(bundle)]) == 0
        accuracy[head] = json.loads((run / "results.json").read_text())["test_accuracy"]
        if test_images is not None:
            capsys.readouterr()
            assert tnn_runtime(["predict", str(bundle), str(test_images), "--format", "csv", "--device", "cpu"]) == 0
            rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
            right = sum(Path(row["path"]).parent.name == row["label"] for row in rows)
            assert right / len(rows) == accuracy[head]
    bundles = [str(tmp_path / f"{head}-bundle") for head in accuracy]
    assert tnn_runtime(["bench", *bundles, "--batch", "2", "--threads", "1", "--processes", "1", "--blocks", "2"]) == 0
    return accuracy["tversky"]


def test_a_folder_of_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).symlink_to(photos / name)
    data = ["--data", str(tmp_path / "data"), "--epochs", "3", "--augment", "flip", "--batch-size", "16"]
    test_images = tmp_path / "flat"
    for name in ("cat", "dog"):
        (test_images / name).mkdir(parents=True)
        for path in (photos / name).iterdir():
            (test_images / name / path.name).symlink_to(path)
    assert go(data, test_images, tmp_path, capsys) >= 0.9


def test_real_mnist(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "mnist", "--data-root", str(data_root), "--limit", "2000", "--epochs", "6"]
    assert go(data, None, tmp_path, capsys) >= 0.5


def test_real_cifar10_jpegs(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(data_root / "cifar10-jpeg.tar.gz") as tar:
        members = [m for m in tar.getmembers() if m.isfile() and int(Path(m.name).stem) < 60]
        tar.extractall(tmp_path / "cifar", members, filter="data")
    data = ["--data", str(tmp_path / "cifar"), "--epochs", "3", "--augment", "crop", "flip"]
    assert go(data, tmp_path / "cifar" / "test", tmp_path, capsys) > 0.12
