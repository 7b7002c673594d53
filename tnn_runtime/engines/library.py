"""Which TensorRT is installed."""

from __future__ import annotations

import importlib
import re
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any

from tnn_runtime.errors import ProviderUnavailable, UsageError
from tnn_runtime.installation import install_command

__all__ = ["INSTALL", "Library", "collecting_logger", "find_tensorrt", "one_line"]

INSTALL = (
    f"{install_command('tensorrt')} (needs an NVIDIA GPU) or {install_command('tensorrt-rtx')} (builds without one)"
)

_KINDS = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx_bindings": "tensorrt_rtx",
    "tensorrt_rtx": "tensorrt_rtx",
    "tensorrt_lean": "tensorrt",
    "tensorrt_dispatch": "tensorrt",
}
"""Modules in the order of preference. The last two can only run engines; they are looked for to be named."""

_OLDEST = {"tensorrt": (10, 13), "tensorrt_rtx": (1, 0)}
_NEEDED = ("Builder", "OnnxParser")


@dataclass(frozen=True)
class Library:
    """A TensorRT that builds engines.

    Args:
        module: The imported Python module.
        kind: ``"tensorrt"``, which builds on a GPU for this GPU, or ``"tensorrt_rtx"``, which builds anywhere.
        version: Its version; an engine runs with exactly this one.
    """

    module: Any
    kind: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


def find_tensorrt(kind: str | None = None) -> Library:
    """Return the installed TensorRT, or else the installed TensorRT for RTX.

    Args:
        kind: ``"tensorrt"`` or ``"tensorrt_rtx"`` to accept only this one.

    Raises:
        UsageError: If there is no such kind.
        ProviderUnavailable: If there is none that builds engines, with what there is instead.
    """
    if kind not in (None, *_OLDEST):
        raise UsageError(f"unknown kind of TensorRT {kind!r}; choose {' or '.join(_OLDEST)}")
    found = []
    for name, its_kind in _KINDS.items():
        if kind not in (None, its_kind):
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                found.append(f"{name} cannot be imported ({error})")
            continue
        library = Library(module, its_kind, str(getattr(module, "__version__", "0")))
        if problem := _problem(library):
            found.append(f"{name} {library.version} {problem}")
            continue
        return library
    there = "; ".join(found) or "none is installed"
    raise ProviderUnavailable(f"no {kind or 'TensorRT'} that builds engines: {there}; install one with {INSTALL}")


def collecting_logger(trt: Any, complaints: MutableSequence[str]) -> Any:
    """Return a logger of a TensorRT module that keeps errors alone; it must outlive what it is given to."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(one_line(message))

    return Logger()


def one_line(message: str) -> str:
    """Return a message on one line, without the CUDA errors that follow it on machines that have no GPU."""
    return " ".join(message.split()).split(" [checkMacros")[0]


def _problem(library: Library) -> str | None:
    if missing := [name for name in _NEEDED if not hasattr(library.module, name)]:
        return f"can only run engines, it has no {' and no '.join(missing)}"
    oldest = _OLDEST[library.kind]
    if tuple(map(int, re.findall(r"\d+", library.version)[:2])) < oldest:
        return f"is older than {'.'.join(map(str, oldest))}"
    return None
