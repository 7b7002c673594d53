"""Advice to install names packages that exist, never this project, which no index holds."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tnn_runtime import installation
from tnn_runtime.installation import DISTRIBUTION, install_command

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def nothing_installed(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_what_an_extra_needs(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "version", nothing_installed)
    command = install_command(extra)
    assert command.startswith("pip install ")
    assert DISTRIBUTION not in command
    for requirement in EXTRAS[extra]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        assert name[0] == DISTRIBUTION or f"{name[0]}" in command


def test_what_is_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"filelock", "cuda-bindings"}
    monkeypatch.setattr(installation, "version", lambda name: "1" if name in there else nothing_installed(name))
    assert install_command("tensorrt") == "pip install 'tensorrt<12,>=10.13'"
    there.add("tensorrt")
    assert "filelock" in install_command("tensorrt"), "all of it, where something that is installed does not work"


def test_no_build_of_onnx_runtime_is_put_over_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "version", lambda n: "1" if n == "onnxruntime-gpu" else nothing_installed(n))
    assert install_command("cpu") == "pip install 'tqdm<5,>=4.66'"


def test_an_unknown_extra_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="got the extra 'no-such'; expected one of .*'cpu'"):
        install_command("no-such")


def test_no_text_asks_an_index_for_this_project() -> None:
    folders = ("tnn_runtime", "tnn_train", "tnn_export", "docs", "examples")
    files = [
        *(path for folder in folders for path in (ROOT / folder).rglob("*.*")),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "constraints.txt", "Makefile")),
    ]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".md", ".jinja", ".txt", "")}
    assert len(texts) > 100
    wrong = re.compile(rf"pip3? install[^\n]*{DISTRIBUTION}(\[|'|\"|\s|==|$)")
    assert not [str(path.relative_to(ROOT)) for path, text in texts.items() if wrong.search(text)]
