"""The three commands as processes: signals, missing packages, closed pipes."""

from __future__ import annotations

import importlib
import logging
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import forked
import pytest
from waiting import FOREVER, until

from tnn_runtime import TnnError
from tnn_runtime.console import notes, run
from tnn_runtime.installation import install_command
from tnn_train.__main__ import main


@pytest.mark.parametrize(
    ("package", "extra", "module"),
    [("train", "train", "torch"), ("export", "export", "torch"), ("runtime", "cpu", "tqdm")],
)
def test_a_missing_package_is_one_line(package: str, extra: str, module: str, bundles: dict[str, Path]) -> None:
    arguments = ["predict", str(bundles["linear"]), "x.png"] if package == "runtime" else ["--help"]
    program = (
        f"import sys; sys.modules[{module!r}] = None; "
        f"from tnn_{package}.__main__ import main; sys.exit(main({arguments!r}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"tnn-{package}: error: {module} is not installed; run: {install_command(extra)}\n"


def _hear_interrupts() -> None:
    """Undo what a shell does to jobs in the background: they inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command_runs(process: subprocess.Popen[str]) -> bool:
    """Whether `run` has begun: the process catches SIGTERM."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), flags=re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the process table of Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["command runs", "epoch is saved"])
def test_an_interrupted_training_ends_in_one_line(number: int, moment: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--epochs", "9999"]
    if moment == "command runs":
        command = [sys.executable, "-m", "tnn_train", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, preexec_fn=_hear_interrupts, **streams) as process:
            until(lambda: process.poll() is not None or _command_runs(process))
            process.send_signal(number)
            _, error = process.communicate(timeout=FOREVER)
        code = process.returncode
    else:
        program = forked.Program(main, [*arguments, "--backbone", "tiny"])
        until(lambda: program.poll() is not None or (out / "last").exists())
        program.send_signal(number)
        result = program.end()
        code, error = result.returncode, result.stderr
    assert code == 130
    last = error.splitlines()[-1]
    assert last.startswith("tnn-train: interrupted")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (TnnError("two\nlines"), "it: error: two lines"),
        (
            OSError(28, "No space left on device", "/x"),
            "it: error: the system refused a file (No space left on device: /x)",
        ),
        (
            OSError(24, "Too many open files", "/x"),
            "it: error: the system refused a file (Too many open files: /x); too many",
        ),
        (
            OSError(13, "Permission denied", "/x"),
            "it: error: the system refused a file (Permission denied: /x); give your",
        ),
        (
            OSError(30, "Read-only file system"),
            "it: error: the system refused a file (Read-only file system); choose a f",
        ),
        (
            OSError(5, "Input/output error", "/x"),
            "it: error: the system refused a file (Input/output error: /x); look at",
        ),
        (OSError(12, "Cannot allocate memory"), "it: error: out of memory (Cannot allocate memory)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "it: error: out of memory (CUDA out of memory."),
        (MemoryError("no room for 3 TiB"), "it: error: out of memory (no room for 3 TiB); use a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "it: error: out of memory (DefaultCPUAllocator"),
        (KeyboardInterrupt(), "it: interrupted"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    raised: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise raised

    assert run("it", fail, []) == (130 if isinstance(raised, KeyboardInterrupt) else 1)
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["tnn_runtime", "tnn_train.training", "tnn_export.proof"])
@pytest.mark.parametrize("texts", [["a", "a"], ["a", "b", "a"], ["a", "b", "c", "c", "b"]])
def test_a_note_is_printed_once(name: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with notes("it"):
            for text in texts:
                logging.getLogger(name).warning("%s", text)
        assert capsys.readouterr().err.splitlines() == [f"it: note: {text}" for text in dict.fromkeys(texts)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_other_code_disguised_is_still_one(number: int) -> None:
    program = f"""
import os, signal, sys
from tnn_runtime.console import notes, run
def disguise(arguments):
    try:
        exec("os.kill(os.getpid(), {int(number)})", {{"os": os}})
    except KeyboardInterrupt:
        if arguments:
            raise RuntimeError("cannot define a class") from None
        raise
sys.exit(run("it", disguise, sys.argv[1:]))
"""
    for arguments in ([], ["disguise"]):
        command = [sys.executable, "-c", program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_hear_interrupts)
        assert (result.returncode, result.stderr) == (130, "it: interrupted\n")


@pytest.mark.parametrize("package", ["train", "export", "runtime"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_is_one_line_also_where_an_exception_would_be_lost(package: str, number: int) -> None:
    program = f"""
import os, sys
class Package:
    def find_spec(self, name, path, target=None):
        if name == "tnn_{package}.commands":
            Lost()
class Lost:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Package())
from tnn_{package}.__main__ import main
sys.exit(main([]))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_hear_interrupts)
    assert (result.returncode, result.stderr) == (130, f"tnn-{package}: interrupted\n")


@pytest.mark.parametrize("package", ["train", "export", "runtime"])
def test_a_command_imports_little_before_it_hears_interrupts(package: str) -> None:
    program = f"import sys, tnn_{package}.__main__; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"numpy", "PIL", "torch", "tqdm"} & set(result.stdout.split())


@pytest.mark.parametrize("package", ["tnn_train", "tnn_export", "tnn_runtime"])
def test_the_version_is_told(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"{package}.__main__").main(["--version"]) == 0
    assert capsys.readouterr().out == f"{package.replace('_', '-')} {version('tnn-deploy')}\n"


@pytest.mark.parametrize(
    "message",
    ["a bug", "an illegal memory access was encountered", "unable to allocate shared memory(shm) for file </x>"],
)
def test_a_bug_keeps_its_traceback(message: str) -> None:
    def fail(arguments: object) -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=re.escape(message)):
        run("it", fail, [])


@pytest.mark.parametrize(
    "words",
    [
        "tnn_runtime predict BUNDLE PHOTO",
        "tnn_runtime doctor",
        "tnn_runtime --version",
        "tnn_export inspect BUNDLE",
        "tnn_export --help",
        "tnn_train compare nowhere",
    ],
)
def test_closed_standard_output_is_one_line(words: str, small_bundle: Path, photos: Path) -> None:
    words = words.replace("BUNDLE", str(small_bundle)).replace("PHOTO", str(photos / "cat" / "0.png"))
    command = ["bash", "-c", f"{sys.executable} -m {words} >&-"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    name = words.split()[0].replace("_", "-")
    line = f"{name}: error: standard output is closed; redirect it to a file, or to /dev/null\n"
    assert (result.returncode, result.stderr) == (1, line)


@pytest.mark.parametrize("words", ["tnn_runtime predict nowhere x.png", "tnn_export inspect nowhere", "tnn_train x"])
def test_an_error_does_not_go_to_standard_output_when_standard_error_is_closed(words: str) -> None:
    command = ["bash", "-c", f"{sys.executable} -m {words} 2>&-"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")


def test_a_closed_pipe_is_no_error(bundles: dict[str, Path], photos: Path) -> None:
    command = f"{sys.executable} -m tnn_runtime predict {bundles['linear']} {photos} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
