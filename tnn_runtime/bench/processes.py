"""Starts the processes of a benchmark, one at a time; none outlives the one that started it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any

from tnn_runtime.bench.errors import BenchmarkError, error_from_json
from tnn_runtime.bench.worker import Job

__all__ = ["BUNDLES", "run_job"]

BUNDLES = ("-m", "tnn_runtime.bench.worker")
"""The arguments of Python that start the process that compares bundles."""


def run_job(
    job: Job, program: Sequence[str] = BUNDLES, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Do a job in a fresh process.

    Args:
        job: What to do.
        program: The arguments of Python that start a program that calls `serve`.
        progress: Called after each block.

    Returns:
        For a timing: ``threads``, ``seed``, ``load_order``, what each contender is ``about``, ``no_device_time`` with
        the reason if the clock of a GPU was not read, ``clock_mhz``, ``affinity``, ``environment``, and ``batches``:
        each with ``batch``, ``distinct_inputs``, the `WarmUp` of each contender, the ``seconds`` by contender, block
        and call, and ``device_seconds`` likewise, or None. For a measurement of memory: ``batches``, each with
        ``batch``, ``resident_bytes`` and ``device_bytes``.

    Raises:
        TnnError: What the process raised.
        BenchmarkError: If it died.
    """
    # -P: modules in the current folder must not hide libraries of the same names.
    command = [sys.executable, "-P", *program]
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        ) as process,
    ):
        try:
            return _converse(job, process, stderr, progress)
        finally:
            _end(process)


def _converse(
    job: Job, process: subprocess.Popen[str], stderr: IO[bytes], progress: Callable[[], object]
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
    for line in process.stdout:
        message = json.loads(line)
        if "result" in message:
            return dict(message["result"])
        if "error" in message:
            raise error_from_json(message["error"])
        progress()
    raise BenchmarkError(
        f"a process that measured {'memory' if job.only else 'latency'} with {job.threads} threads ended early "
        f"({_reason(process.wait(), stderr)}); expected a result: try a smaller batch, or one bundle alone with "
        "tnn-runtime predict"
    )


def _reason(code: int, stderr: IO[bytes]) -> str:
    if code < 0:
        return f"it died of {signal.Signals(-code).name}"
    stderr.seek(0)
    lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"


def _end(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started; it has nothing left to say."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
