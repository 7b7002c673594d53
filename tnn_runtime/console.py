"""What the three commands share: one-line errors with exit code 1, one line for an interrupt, and no traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeAlias

from tnn_runtime.errors import TnnError, UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.text import one_line, why_not_utf8

__all__ = [
    "INTERRUPTED",
    "CommandParser",
    "Parser",
    "any_path",
    "is_out_of_memory",
    "logs",
    "notes",
    "positive_int",
    "refuse_not_utf8",
    "run",
    "say",
    "tell",
]

Command: TypeAlias = Callable[[Sequence[str]], None]

INTERRUPTED = 130
"""The exit code after an interrupt, as shells have it."""

_FAILED = 1
_OUT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|insufficient memory|"
    "allocate (?!shared)[^.;]*memory|bad allocation|bad_alloc|alloc_failed",
    re.IGNORECASE,
)
"""How libraries say that there is too little memory; a "memory access" or "shared memory" is something else."""

_WRITABLE = "choose a folder that can be written and has space"
_PERMITTED = "give yourself the right to read it, or to write there, or choose another one"
_REMEDIES = {
    errno.EACCES: _PERMITTED,
    errno.EPERM: _PERMITTED,
    errno.EMFILE: "too many are open: raise the limit, ulimit -n 65536",
    errno.ENFILE: "too many are open on this machine: close other programs, or raise fs.file-max",
    errno.ENOSPC: _WRITABLE,
    errno.EDQUOT: _WRITABLE,
    errno.EROFS: _WRITABLE,
    errno.EFBIG: _WRITABLE,
    errno.ENOENT: "give one that exists",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do about errors of the system."""

_PACKAGES = ("tnn_runtime", "tnn_train", "tnn_export")


class Parser(argparse.ArgumentParser):
    """An argument parser with defaults in its help and errors that are a `UsageError`."""

    def __init__(self, prog: str, description: str = "", epilog: str = "") -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=_Formatter)
        self.register("type", int, _integer)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UsageError`."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments; refuse text and paths that are not UTF-8, but for the paths of `any_path`.

        Raises:
            UsageError: If an argument cannot be used.
        """
        found, others = super().parse_known_args(args, namespace)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            if action.type is not any_path:
                refuse_not_utf8(given if isinstance(given, list) else [given])
        return found, others


class CommandParser(Parser):
    """The parser of one of several commands; it refuses what it does not know, so that errors name its own help."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments as `Parser` does; none may be left."""
        found, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return found, others


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.default in (None, False, (), argparse.SUPPRESS):
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})".replace("%", "%%")


class _OneLine(logging.Formatter):
    """Log records on one line each."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def positive_int(text: str) -> int:
    """Return a number of things that an argument asks for: the ``type`` of an option.

    Raises:
        ArgumentTypeError: If it is no integer of at least 1.
    """
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer of at least 1")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number") from None


def any_path(text: str) -> Path:
    """Return a path whose name may be other than UTF-8: the ``type`` of an argument for files that are only read."""
    return Path(text)


def refuse_not_utf8(values: Iterable[object]) -> None:
    """Make sure that the text and the paths among some values are UTF-8.

    Raises:
        UsageError: If one is not; the message names it.
    """
    for value in values:
        if isinstance(value, str | Path) and (why := why_not_utf8(value)):
            raise UsageError(why)


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines for people to read, on standard output if no file is given; controls in them are escaped."""
    for line in lines:
        print(one_line(line), file=file)


def tell(line: str, code: int) -> None:
    """Print the line that ends a command, which exits with ``code``, on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def notes(name: str, is_told: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Print what our packages log as notes on standard error, each text once.

    Args:
        name: What to call the command.
        is_told: Whether this process is to print them.
    """
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known, text = len(told), record.getMessage()
        told.add(text)
        return is_told() and len(told) > known

    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(f"{name}: note: %(message)s"))
    handler.addFilter(is_new)
    with _handled(handler, _PACKAGES):
        yield


@contextlib.contextmanager
def logs(name: str) -> Iterator[None]:
    """Print what our packages log on standard error, with the time: for commands that run until they are ended.

    Args:
        name: What to call the command.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] %(levelname)s %(message)s"))
    ours = logging.getLogger("tnn_runtime")
    level = ours.level
    ours.setLevel(logging.INFO)
    try:
        with _handled(handler, [*_PACKAGES, "asyncio", "grpc", "uvicorn"]):
            yield
    finally:
        ours.setLevel(level)


@contextlib.contextmanager
def _handled(handler: logging.Handler, names: Iterable[str]) -> Iterator[None]:
    """Have a handler for some loggers within."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def run(
    name: str,
    command: Command | str,
    arguments: Sequence[str] | None = None,
    *,
    extra: str = "dev",
    tell: Callable[[str, int], None] = tell,
) -> int:
    """Run a command and return its exit code: 0, or after one line on standard error 1, or 130 if it was interrupted.

    Args:
        name: What to call the command in an error.
        command: What to run; or the module that has it as ``command``. That is imported here, so that a missing package
            and an interrupted import are one line, too.
        arguments: Its arguments, by default those of the process.
        extra: The extra of this distribution that brings the packages it needs.
        tell: What prints the line, given the exit code as well.
    """

    def end(line: str, code: int = _FAILED) -> int:
        tell(one_line(f"{name}: {line}"), code)
        return code

    def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(end("interrupted", INTERRUPTED))

    if sys.stderr is None:
        # What is printed there would go to standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return end("error: standard output is closed; redirect it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    if list(words) == ["--version"]:
        print(name, importlib.import_module("tnn_runtime.version").__version__)
        return 0
    try:
        # An exception would be lost in one of the many callbacks of an import, or be printed from there.
        _handle_signals(end_at_once)
        start: Command = importlib.import_module(command).command if isinstance(command, str) else command
        _quiet_pillow()
        with _interrupts():
            start(words)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except ModuleNotFoundError as error:
        return end(f"error: {error.name} is not installed; run: {install_command(extra)}")
    except OSError as error:
        return end(f"error: {_told(error)}")
    except TnnError as error:
        return end(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return end(f"error: out of memory ({str(error)[:200]}); use a smaller batch or a smaller model")
    except KeyboardInterrupt as interrupt:
        # CPython kills its own process by SIGINT at the end if the last string it executed was interrupted (classes
        # are made that way during imports), although the interrupt was caught; an empty one clears its memory.
        exec("")  # noqa: S102
        return end(f"interrupted{'; ' if str(interrupt) else ''}{interrupt}", INTERRUPTED)
    return 0


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether an error says that there is too little memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def _told(error: OSError) -> str:
    """Return what the system refused, and what to do."""
    reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
    if error.errno == errno.ENOMEM:
        return f"out of memory ({reason}); use a smaller batch or a smaller model"
    remedy = _REMEDIES.get(error.errno or 0, "look at the file and its disk, and try again")
    return f"the system refused a file ({reason}); {remedy}"


def _quiet_pillow() -> None:
    """Leave out Pillow's warning of images over our limit, which are refused in one line."""
    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _handle_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Handle SIGTERM, and SIGINT unless it is ignored as in background jobs, where this thread may."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGINT and SIGTERM, also where other code turned it into another error."""
    received = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal received
        received = True
        raise KeyboardInterrupt

    _handle_signals(interrupt)
    try:
        yield
    except Exception as error:
        if received:
            raise KeyboardInterrupt from error
        raise
