"""Programs in processes of their own that start at once: forked from a server that has imported what takes long."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest

IMPORTED = (
    "conftest",
    "onnxruntime",
    "torch.distributed.run",
    "torch.export",
    "tnn_export.commands.export",
    "tnn_runtime.commands.bench",
    "tnn_runtime.commands.predict",
    "tnn_train.commands.train",
)


@cache
def context() -> BaseContext:
    """Return the context of processes that the server forks; it serves one process of the tests until that ends.

    In a process that was forked, that of processes that it forks itself.
    """
    if multiprocessing.parent_process() is not None:
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        # The fork server of Python 3.11 looks for what it shall import on a path of its own.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return server


class Program:
    """A function that runs as a program does: what it returns is the exit code. The head of a session.

    Args:
        function: Of a module that can be imported.
        arguments: To call it with.
        cwd: The folder where it runs; without it, that of the tests.
        environment: More variables than those of the tests.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: object,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        variables = {**os.environ, **(environment or {})}
        values = (function, arguments, Path(self._folder.name), os.fspath(cwd or Path.cwd()), variables)
        self._process = context().Process(target=_run, args=values)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or the signal that killed it as a negative number; ``None`` while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end, and return all that it printed."""
        self._process.join()
        out, err = (Path(self._folder.name, name).read_text() for name in ("out", "err"))
        self._folder.cleanup()
        return subprocess.CompletedProcess([], self._process.exitcode or 0, out, err)


def run(
    function: Callable[..., Any],
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a `Program` to its end."""
    return Program(function, *arguments, cwd=cwd, environment=environment).end()


def python(*words: str) -> None:
    """Do what ``python FILE ARGUMENTS`` does, or ``python -P FILE ARGUMENTS``; for a `Program`."""
    (*options, file), arguments = words[: 1 + (words[0] == "-P")], words[1 + (words[0] == "-P") :]
    sys.argv = [file, *arguments]
    if not options:
        sys.path.insert(0, os.path.dirname(file))
    runpy.run_path(file, run_name="__main__")


def torchrun(function: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    """Do what ``torchrun --standalone --nproc-per-node 2`` does with a program; for a `Program`."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, 2, run_id="forked", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
    )
    elastic_launch(config, _exit)(function, arguments)


def _exit(function: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    if code := function(arguments):
        sys.exit(code)


def _run(
    function: Callable[..., Any], arguments: tuple[object, ...], folder: Path, cwd: str, variables: dict[str, str]
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # A child of the server would start its own as the server does.
    for name, number in (("out", 1), ("err", 2)):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.exit(function(*arguments))
