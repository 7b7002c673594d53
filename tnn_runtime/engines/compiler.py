"""Programs in C, compiled once by the system's compiler and kept under a name that says what they were made from."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tnn_runtime.bundle.storage import write_bytes, write_text
from tnn_runtime.engines.cache import OTHER_FOLDER, program_folder
from tnn_runtime.errors import EngineError, ProviderUnavailable

__all__ = ["Compiler", "find_compiler", "load_program"]

_LOG = logging.getLogger(__name__)

_FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=default", "-ffp-contract=off", "-w")
_NATIVE = "-march=native"
_MOST_SECONDS = 600
_INSTALL = "install one, such as apt install gcc, or name one in the environment variable CC"
_CORRECT = "correct the environment variable CC, or unset it to use cc"


class Compiler:
    """The C compiler of this machine.

    Args:
        command: What starts it.
        version: What it says of itself.
        flags: What it is told.
    """

    def __init__(self, command: tuple[str, ...], version: str, flags: tuple[str, ...]) -> None:
        self.command = command
        self.version = version
        self.flags = flags

    def key(self, source: str) -> str:
        """Return a hash of a source, the compiler, its flags, and the processor if the program is made for it alone."""
        made_from = [source, *self.command, self.version, *self.flags, platform.machine(), platform.system()]
        if _NATIVE in self.flags:
            made_from.append(_processor())
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def __str__(self) -> str:
        return self.version


def find_compiler() -> Compiler:
    """Return the compiler that ``CC`` names, or ``cc``.

    Raises:
        ProviderUnavailable: If there is none.
    """
    asked = _asked()
    try:
        command = shlex.split(asked) or ["cc"]
    except ValueError as error:
        raise ProviderUnavailable(f"CC is {asked!r}, which is no command ({error}); {_CORRECT}") from error
    program = shutil.which(command[0])
    if program is None:
        raise ProviderUnavailable(f"there is no C compiler {command[0]!r} on this machine; {_remedy()}")
    said = _run([program, *command[1:], "--version"])
    flags = (*_FLAGS, _NATIVE) if _processor() else _FLAGS
    return Compiler((program, *command[1:]), said.strip().split("\n")[0], flags)


def load_program(source: str, folder: str | Path | None = None) -> tuple[ctypes.CDLL, Path, Compiler]:
    """Compile a program as a shared library, unless that was done before, and load it.

    The library is kept beside a file with its hash. Both are written whole or not at all; processes that compile the
    same at once write the same.

    Args:
        source: C.
        folder: Where it is kept; by default in the cache folder of the user. Nobody else may write to it.

    Returns:
        The library, its path, and the compiler.

    Raises:
        ProviderUnavailable: If there is no compiler, or it does not compile the program.
        EngineError: If the folder cannot be used.
    """
    compiler = find_compiler()
    path = program_folder(folder) / f"{compiler.key(source)[:40]}.so"
    try:
        if not _is_whole(path):
            _LOG.info("compiling %s with %s", path, compiler)
            _compile(source, compiler, path)
        return ctypes.CDLL(str(path)), path, compiler
    except OSError as error:
        raise EngineError(
            f"the program {path} cannot be written or loaded ({' '.join(str(error).split())}); make the folder "
            f"writable, on a file system that programs may run from, or {OTHER_FOLDER}"
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        return path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return False


def _compile(source: str, compiler: Compiler, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tnn-program-") as workshop:
        text, made = Path(workshop, "program.c"), Path(workshop, "program.so")
        text.write_text(source)
        _run([*compiler.command, *compiler.flags, "-o", str(made), str(text)])
        if not made.exists():
            raise ProviderUnavailable(
                f"{shlex.join(compiler.command)} makes no program, so it is no C compiler; {_remedy()}"
            )
        content = made.read_bytes()
    # Under another name first: a library that is loaded must not change under whoever runs it.
    path.unlink(missing_ok=True)
    write_bytes(path, content)
    write_text(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())


def _run(command: list[str]) -> str:
    """Run the compiler and return what it prints.

    Raises:
        ProviderUnavailable: If it fails.
    """
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_MOST_SECONDS, stdin=subprocess.DEVNULL
        )
        said, code = result.stderr, result.returncode
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        said, code = str(error), 1
    if code:
        reason = " ".join(said.split())[:300] or f"exit code {code}"
        raise ProviderUnavailable(f"the C compiler {_asked() or command[0]} fails ({reason}); {_remedy()}")
    return result.stdout


def _asked() -> str:
    return os.environ.get("CC", "").strip()


def _remedy() -> str:
    return _CORRECT if _asked() else _INSTALL


@functools.cache
def _processor() -> str:
    """Return what the processor can do, as Linux tells it; empty where that is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)
    return found[0] if found else ""
