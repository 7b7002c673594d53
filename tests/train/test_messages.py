from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from waiting import FOREVER

from tnn_train import messages
from tnn_train.messages import is_first, tell_once


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of ``torchrun``, in whose environment this process seems to be, as rank 1 of 2; it waits forever."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "RANK": "1"}
    for name, value in {**environment, "TORCHELASTIC_RUN_ID": "run"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(messages, "_WAIT", timedelta(seconds=FOREVER))
    monkeypatch.setattr(messages.signal, "signal", lambda number, handler: None)
    return store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come is not waited for."""
    monkeypatch.setattr(messages, "_WAIT", timedelta(seconds=0.1))


def test_a_process_of_its_own_talks(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_first()
    tell_once("it: error: no data", 1)
    assert capsys.readouterr().err == "it: error: no data\n"


def test_what_the_first_process_says_is_not_repeated(
    launched: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert is_first()
    tell_once("it: error: no data", 1)
    assert capsys.readouterr().err == "it: error: no data\n"
    monkeypatch.setenv("RANK", "1")
    assert not is_first()
    tell_once("it: error: no data", 1)
    assert capsys.readouterr().err == ""
    tell_once("it: error: no GPU", 1)
    assert capsys.readouterr().err == "it: error: no GPU (process 1 of 2)\n"


def test_an_error_that_the_first_process_does_not_have_is_seen(
    launched: TCPStore, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once("it: error: no data", 1)
    assert capsys.readouterr().err == "it: error: no data (process 1 of 2)\n"


def test_the_first_process_does_not_depend_on_the_others(
    launched: TCPStore, impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    tell_once("it: error: no data", 1)
    assert capsys.readouterr().err == "it: error: no data\n"


def test_only_the_first_process_says_that_it_was_interrupted(
    launched: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once("it: interrupted", 130)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    tell_once("it: interrupted", 130)
    assert capsys.readouterr().err == "it: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], pytest.param(["--standalone"], marks=pytest.mark.exhaustive)], ids=" ".join)
def test_an_error_under_torchrun_is_printed_once(options: list[str], tmp_path: Path) -> None:
    script = tmp_path / "patient_train.py"
    script.write_text(f"""
import sys
from datetime import timedelta
from tnn_train import messages
from tnn_train.__main__ import main
messages._WAIT = timedelta(seconds={FOREVER})
sys.exit(main())
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
    command = [*torchrun, str(script), "--data", "nowhere", "--out", str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("tnn-train: error: unknown data 'nowhere'") == 1
    assert "interrupted" not in result.stderr
