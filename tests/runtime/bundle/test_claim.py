"""One process at a time writes to a folder, and none that was killed holds it for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tnn_runtime import OutputExistsError
from tnn_runtime.bundle.claim import claimed, is_claimed

HOLD = """
import sys
from pathlib import Path
from tnn_runtime.bundle.claim import claimed

with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["itself", signal.SIGTERM, signal.SIGKILL])
def test_another_process_is_kept_out_until_the_holder_has_ended(end: str | signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with holder(folder) as process:
        assert is_claimed(folder)
        with (
            pytest.raises(OutputExistsError, match=r"another process is writing to .*run; wait"),
            claimed(folder),
        ):
            pass
        assert folder.is_dir(), "the folder of the holder is left alone"
        if isinstance(end, signal.Signals):
            os.kill(process.pid, end)
        else:
            process.communicate()
        process.wait()
    with claimed(folder):
        assert is_claimed(folder)
    assert not folder.exists()


def test_what_was_written_stays(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("kept")
    assert (tmp_path / "run" / "file").read_text() == "kept"
    assert not is_claimed(tmp_path / "run")


def test_an_error_leaves_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
