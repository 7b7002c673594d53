"""Names that are not UTF-8 are refused by every command before its work, in one line that says what to do."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tnn_export import export_bundle
from tnn_runtime import TnnError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import DataConfig, TrainConfig, load_data
from tnn_train.data import ImageSet
from tnn_train.model.class_names import check_class_names
from tnn_train.training.embeddings import embed, recall

STRANGE = os.fsdecode(b"caf\xe9")

COMMANDS = (
    "train --data photos --out STRANGE",
    "train --data STRANGE --out run",
    "train --data=photos --data-root=STRANGE --out run",
    "train --data photos --out run --groups STRANGE",
    "train --data photos --out run --weights STRANGE",
    "train --data photos --out run --embedding-cache STRANGE",
    "train --config STRANGE --out run",
    "train --data strange --out run",
    "train sweep --data strange --out runs",
    "train sweep --data photos --out STRANGE",
    "train compare photos --out STRANGE",
    "train unfold STRANGE -o out",
    "train unfold net.pth --backbone resnet18 --images strange -o out",
    "export STRANGE -o out",
    "export CHECKPOINT -o STRANGE",
    "export CHECKPOINT -o out --twin STRANGE",
    "export CHECKPOINT -o out --sign STRANGE",
    "export CHECKPOINT -o out --images STRANGE",
    "export check BUNDLE --json STRANGE",
    "export inspect STRANGE",
    "export sign BUNDLE --key STRANGE",
    "export slim BUNDLE -o STRANGE",
    "export triton BUNDLE -o STRANGE",
    "export triton BUNDLE -o out --name STRANGE",
    "export triton STRANGE -o out --name photos",
    "export import net.pth --from linear --backbone resnet18 --images strange -o out",
    "export import STRANGE --from linear --backbone resnet18 --images photos -o out",
    "export pair --backbone resnet18 --classes 3 -o STRANGE",
    "runtime predict STRANGE photos",
    "runtime predict BUNDLE photos --public-key STRANGE",
    "runtime bench BUNDLE BUNDLE --json STRANGE",
    "runtime bench BUNDLE BUNDLE --plots STRANGE",
)


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with images in classes of plain names, and in one that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    shutil.copytree(photos, "strange")
    Path("strange/cat").rename(Path("strange", STRANGE))
    Path("net.pth").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_refuses_names_that_are_not_utf8(
    words: str, here: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, *arguments = words.replace("STRANGE", STRANGE).replace("BUNDLE", str(small_bundle)).split()
    before = sorted(here.rglob("*"))
    assert importlib.import_module(f"tnn_{package}.__main__").main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"tnn-{package}: error: ")
    assert captured.err.count("\n") == 1
    assert r"caf\udce9' is not UTF-8" in captured.err
    assert "; rename it" in captured.err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "words", ["train --data digits --out run", "export nothing -o out", "export pair --backbone a --classes 3 -o out"]
)
def test_outputs_in_a_folder_that_is_not_utf8_are_refused(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / STRANGE
    folder.mkdir()
    monkeypatch.chdir(folder)
    package, *arguments = words.split()
    if arguments[0] == "nothing":
        Path("nothing").mkdir()
    assert importlib.import_module(f"tnn_{package}.__main__").main(arguments) == 1
    assert "is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataConfig(STRANGE),
        lambda: DataConfig("digits", groups=STRANGE),
        lambda: TrainConfig(weights=STRANGE),
        lambda: TrainConfig(embedding_cache=STRANGE),
        lambda: check_class_names(["cat", STRANGE]),
        lambda: load_data("strange"),
        lambda: export_bundle(STRANGE, "out"),
    ],
)
def test_python_refuses_names_that_are_not_utf8(make: Any, here: Path) -> None:
    with pytest.raises(TnnError, match=r"caf\\udce9' is not UTF-8.*; rename it"):
        make()


def test_images_whose_names_are_not_utf8_are_embedded(here: Path) -> None:
    image = Path("photos/cat/0.png").rename(Path("photos/cat", STRANGE + ".png"))
    preprocessing = Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3)
    images = ImageSet([image, image], np.zeros(2, np.int64), preprocessing)
    embedded = embed(nn.Flatten(), images, torch.device("cpu"), here / "cache")
    found = recall(nn.Flatten(), images, here / "cache")
    assert found is not None
    assert torch.equal(found.embeddings, embedded.embeddings)
