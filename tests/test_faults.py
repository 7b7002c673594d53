"""The tests of every run, without the exhaustive ones, find faults that are planted in a copy of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import EXPLANATION, FAULTS, HEAD, LOWERING, OPERATORS, Fault

ROOT = Path(__file__).parents[1]
COPIED = ("tnn_runtime", "tnn_train", "tnn_export", "tests", "pyproject.toml")


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests on the packages in ``folder``, until one fails."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not exhaustive"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.fspath(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the packages and the tests."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_there_is_one_place_for_a_fault(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.before) == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_without_a_fault_the_tests_pass(copied: Path) -> None:
    result = run(copied, *HEAD, *LOWERING, *OPERATORS, *EXPLANATION)
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault, copied: Path) -> None:
    file = copied / fault.file
    file.write_text(file.read_text().replace(fault.before, fault.after))
    result = run(copied, *fault.tests)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    assert "\nFAILED tests/" in result.stdout
