"""Files of weights that cannot be used: what they are is told, and what to do."""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from tnn_runtime.errors import ArtifactError
from tnn_train.model.state_dicts import check_values, read_state

STATE = nn.Linear(3, 4).state_dict()
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
AGAIN = "copy or download it again"


def saved(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(3, 4), torch.zeros(1, 3)), file)
    return file.getvalue()


def keras() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"")
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "numpy scalar": (lambda: saved({"w": STATE, "loss": np.float64(1)}), "objects of numpy", SAVE),
    "namespace": (lambda: saved({"w": STATE, "args": argparse.Namespace(a=1)}), "objects of argparse.Namespace", SAVE),
    "path": (lambda: saved({"state_dict": STATE, "file": Path("x")}), "objects of pathlib", SAVE),
    "module": (lambda: saved(nn.Linear(3, 4)), "objects of torch.nn.modules.linear.Linear", SAVE),
    "old module": (lambda: saved(nn.Linear(3, 4), legacy=True), "objects of torch.nn.modules.linear.Linear", SAVE),
    "TorchScript": (script, "it is a TorchScript archive", SAVE),
    "safetensors": (lambda: save(STATE), "it is a safetensors file", "rename it to end with .safetensors"),
    "Keras": (keras, "it is a Keras model", SAVE),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "it is an HDF5 file", SAVE),
    "ONNX": (lambda: b"\x08\x0a\x12\x07pytorch", "it is an ONNX model", SAVE),
    "other pickle": (lambda: pickle.dumps({"a": 1}), "holds something else than tensors", SAVE),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer", "run git lfs pull"),
    "HTML": (lambda: b"<!DOCTYPE html><html>", "it is an HTML page", "download it again"),
    "empty": (lambda: b"", "it has 0 bytes", AGAIN),
    "truncated": (lambda: saved(STATE)[:-200], "the file ends early", AGAIN),
    "truncated early": (lambda: saved(STATE)[:50], "the file ends early", AGAIN),
    "truncated, old": (lambda: saved(STATE, legacy=True)[:-20], "the file ends early", AGAIN),
    "noise": (lambda: bytes(range(128, 255)), "unknown kind, its first bytes are 80 81 82 83", SAVE),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is_and_what_to_do(name: str, tmp_path: Path) -> None:
    make, what, remedy = FILES[name]
    path = tmp_path / "net.pth"
    path.write_bytes(make())
    with pytest.raises(
        ArtifactError, match=r"net.pth cannot be read as weights: .*; expected a .pth, .pt or"
    ) as caught:
        read_state(path)
    assert what in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (save(STATE)[:-9], "it is damaged or not whole", AGAIN),
        (saved(STATE), "it is a ZIP archive, not safetensors", "rename it to end with .pth"),
        (b"<html>", "it is an HTML page", "download it again"),
    ],
)
def test_so_of_safetensors(content: bytes, what: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=what) as caught:
        read_state(path)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("fc.weight", [1.0, torch.nan, torch.inf], r"2 of 3 values of fc.weight are NaN or infinite"),
        ("bn1.running_mean", [0.0, -torch.inf], r"1 of 2 values of bn1.running_mean are NaN or infinite"),
        ("bn1.running_var", [1.0, torch.nan], r"1 of 2 values of bn1.running_var are NaN or infinite"),
        ("bn1.running_var", [1.0, -0.5], r"1 of 2 values of bn1.running_var are below 0"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64])
def test_values_that_nothing_can_be_computed_with(
    name: str, values: list[float], what: str, ending: str, kind: torch.dtype, tmp_path: Path
) -> None:
    state = {"ids": torch.zeros(2, dtype=torch.long), name: torch.tensor(values, dtype=kind)}
    path = tmp_path / f"net.{ending}"
    path.write_bytes(save(state) if ending == "safetensors" else saved({"state_dict": state}))
    with pytest.raises(ArtifactError, match=f"net.{ending} cannot be used: {what}.*; train it again"):
        read_state(path)


def test_values_beyond_float32(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "net.pth")
    with pytest.raises(ArtifactError, match="1 of 1 values of fc.weight are NaN or infinite in float32"):
        read_state(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["head.raw_beta", "raw_alpha", "measure.raw_theta"])
def test_minus_infinity_stands_for_0_behind_positive_values(name: str) -> None:
    check_values({name: torch.tensor(-torch.inf)}, "net.pth")
    for value in (torch.inf, torch.nan):
        with pytest.raises(ArtifactError, match=f"1 of 1 values of {name} are NaN or infinite in float32"):
            check_values({name: torch.tensor(value)}, "net.pth")
