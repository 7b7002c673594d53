"""Runs artifacts in fresh processes, as those who deploy them do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_export.errors import ExportError
from tnn_runtime.backends import CRASHING_OPTIMIZERS, FLOAT32_PRODUCTS
from tnn_runtime.queue.cores import usable_cores

__all__ = ["Outputs", "Ran", "Runner", "fresh_process"]

Outputs = Mapping[str, NDArray[np.float32]]
"""The outputs of one batch by their names, each ``[n, ...]``."""


@dataclass(frozen=True)
class Ran:
    """What an artifact gave.

    Args:
        outputs: One for each batch.
        library: What ran it, with its version.
        notes: What who runs it should know.
    """

    outputs: Sequence[Outputs]
    library: str = ""
    notes: tuple[str, ...] = ()


Runner = Callable[[Sequence[NDArray[Any]]], Ran]
"""From batches of images, uint8 ``[n, H, W, C]`` each, to what an artifact gives."""

_PROGRAM = Path(__file__).with_name("artifact.py")


def fresh_process(kind: str, file: Path, device: str = "cpu", precision: str = "fp32") -> Runner:
    """Return a runner that loads an artifact in a new process, with its own library alone.

    If ONNX Runtime crashes, it runs again without the optimizers that do it, as in `tnn_runtime`; that is noted.

    Args:
        kind: The format.
        file: The artifact.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: What it was made in.
    """
    crashing = CRASHING_OPTIMIZERS.get(precision, ()) if (kind, device) == ("onnx", "cpu") else ()

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = Path(folder) / "batches.npz", Path(folder) / "outputs.npz"
            np.savez(inputs, **{str(number): images for number, images in enumerate(batches)})  # type: ignore[arg-type]
            # -P: the modules beside the program must not hide the libraries of the same names.
            program = [sys.executable, "-P", _PROGRAM, kind, file, inputs, outputs, device, usable_cores()]
            if kind == "onnx":
                program.append(precision in FLOAT32_PRODUCTS)
            notes: tuple[str, ...] = ()
            result = _ended(program)
            if crashing and -result.returncode in (signal.SIGSEGV, signal.SIGABRT):
                result = _ended([*program, *crashing])
                notes = (
                    "ONNX Runtime crashes on this graph on the CPU, unless its session is made as tnn_runtime does: "
                    f"InferenceSession(..., disabled_optimizers={list(crashing)})",
                )
            if result.returncode != 0:
                raise ExportError(
                    f"{file.name} does not run on {device} ({_reason(result)}); expected it to run on every batch: "
                    "choose another format, precision or device"
                )
            with np.load(outputs, allow_pickle=False) as found:
                results: list[dict[str, NDArray[np.float32]]] = [{} for _ in batches]
                for name in found.files:
                    number, _, output = name.partition("/")
                    results[int(number)][output] = found[name]
        return Ran(results, json.loads(result.stdout.splitlines()[-1])["library"], notes)

    return run


def _ended(program: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in program], capture_output=True, text=True, check=False)


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode < 0:
        return f"its process died of {signal.Signals(-result.returncode).name}"
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {result.returncode}"
