"""ONNX Runtime tells nobody how it is used, unless the user wants that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from rooms import ROOT

OFF = "ORT_DISABLE_TELEMETRY"
BUNDLE = FIXTURES / "bundle-v5"
PREDICT = f"from tnn_runtime import Classifier\nClassifier.load({str(BUNDLE)!r}, 'cpu').close()"
PROVE = (
    "from tnn_export.proof import artifact; import numpy\n"
    f"run, _ = artifact.onnx({str(BUNDLE / 'model.onnx')!r}, 'cpu', 1, 'False')\n"
    "run(numpy.zeros((1, 8, 8, 3), numpy.uint8))"
)


@pytest.mark.parametrize("program", [PREDICT, PROVE], ids=["predict", "prove"])
def test_nothing_is_kept_in_the_home_of_the_user(program: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != OFF} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert list(tmp_path.rglob("*")) == []


def test_it_is_turned_off_before_each_import() -> None:
    files = [file for package in ("tnn_runtime", "tnn_export", "tnn_train") for file in (ROOT / package).rglob("*.py")]
    importing = [text for file in files if re.search(r"^\s*(import|from) onnxruntime", text := file.read_text(), re.M)]
    assert len(importing) >= 3
    for text in importing:
        before = re.split(r"^\s*(?:import|from) onnxruntime", text, maxsplit=1, flags=re.M)[0]
        assert OFF in before or "backends.ort import" in before


def test_who_wants_it_has_it() -> None:
    program = f"import os; from tnn_runtime.backends.ort import ort; print(os.environ[{OFF!r}])"
    environment = {**os.environ, OFF: "0"}
    ended = subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True)
    assert ended.stdout.strip() == "0"
