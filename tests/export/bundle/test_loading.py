"""A bundle that cannot be loaded is never written: for the names of its classes, or for anything else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnn_export import ExportError, export_bundle
from tnn_export.__main__ import main
from tnn_export.bundle import finish as bundle_module
from tnn_export.bundle import write as write_module
from tnn_runtime import Classifier
from tnn_train import load_data
from tnn_train.__main__ import main as train_main
from tnn_train.data import load as load_module
from tnn_train.data.sources import Found, Labelled
from tnn_train.errors import DataError


@pytest.mark.parametrize("text", ["cat\ncat\n", "cat\n\ncat", " cat\ncat \n", "cat\r\ncat\r\n", "dog\ncat\ndog\n"])
@pytest.mark.parametrize("command", ["import", "unfold"])
def test_files_that_name_a_class_twice_are_refused(
    command: str, text: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, weights, out = tmp_path / "names.txt", tmp_path / "net.pth", tmp_path / "out"
    names.write_bytes(text.encode())
    weights.write_bytes(b"is not read")
    arguments = [str(weights), "--backbone", "tiny", "--images", str(photos), "--class-names", str(names)]
    if command == "import":
        assert main(["import", *arguments, "--from", "linear", "-o", str(out)]) == 1
    else:
        assert train_main(["unfold", *arguments, "-o", str(out)]) == 1
    twice, error = text.split()[0], capsys.readouterr().err
    assert (
        f"{names}, line {text.rstrip().count(chr(10)) + 1}: got '{twice}', as in line 1; expected each class once"
        in error
    )
    assert not out.exists()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "b", "a"), ("\N{LATIN SMALL LETTER E WITH ACUTE}",) * 2, ("", "")])
def test_data_that_names_a_class_twice_is_refused(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((20 * len(names), 16, 16, 3), np.uint8)
    labels = np.repeat(np.arange(len(names)), 20)
    found = Found({"train": Labelled(images, labels)}, names, channels=3, image_size=16)
    monkeypatch.setitem(load_module.DATASETS, "mine", lambda config: found)
    with pytest.raises(DataError, match=f"mine has two classes called {names[0]!r}; expected a name of its own"):
        load_data("mine")


@pytest.mark.parametrize("names", [["cat", "cat"], ["", ""], ["a b", "a b"]])
def test_a_checkpoint_that_names_a_class_twice_is_not_exported(
    names: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "class_names": names}))
    assert main([str(checkpoint), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"the checkpoint has two classes called {names[0]!r}" in error
    assert "give each a name of its own: class_names in its config.json" in error
    assert not (tmp_path / "out").exists()
    (checkpoint / "config.json").write_text(json.dumps({**config, "class_names": ["tom", "rex"]}))
    assert main([str(checkpoint), "-o", str(tmp_path / "out"), "--formats", "onnx"]) == 0
    Classifier.load(tmp_path / "out", "cpu").close()


def no_tolerances(monkeypatch: pytest.MonkeyPatch) -> None:
    write_golden = bundle_module.write_golden
    monkeypatch.setattr(bundle_module, "write_golden", lambda *arguments: write_golden(*arguments)[:0])


def other_golden_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    write_golden = bundle_module.write_golden
    monkeypatch.setattr(bundle_module, "write_golden", lambda *arguments: (0.0,) * len(write_golden(*arguments)))


def no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "write_head", lambda *arguments: None)


def another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    make = bundle_module.Manifest

    def wrong(**fields: Any) -> Any:
        return dataclasses.replace(make(**fields), class_names=("cat",))

    wrong.read = make.read  # type: ignore[attr-defined]
    monkeypatch.setattr(bundle_module, "Manifest", wrong)


@pytest.mark.parametrize("fault", [no_tolerances, other_golden_samples, no_head, another_class])
@pytest.mark.parametrize("formats", [["onnx"], ["torchscript"]])
def test_an_export_ends_by_loading_what_it_wrote(
    formats: list[str], fault: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    if formats == ["torchscript"] and fault in (no_tolerances, other_golden_samples):
        pytest.skip("golden samples are replayed on the ONNX model alone")
    with pytest.raises(ExportError, match=r"the bundle cannot be loaded, so nothing was written \("):
        export_bundle(checkpoint, tmp_path / "out", formats)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
