"""What the three commands share: one-line errors with exit code 1, one line for an interrupt, and no traceback."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from tnn_runtime.errors import TnnError, UsageError
from tnn_runtime.installation import install_command

__all__ = ["INTERRUPTED", "Parser", "notes", "positive_int", "run", "tell"]

Command: TypeAlias = Callable[[Sequence[str]], None]

INTERRUPTED = 130
"""The exit code after an interrupt, as shells have it."""

_FAILED = 1
_PACKAGES = ("tnn_runtime", "tnn_train", "tnn_export")


class Parser(argparse.ArgumentParser):
    """An argument parser with defaults in its help and errors that are a `UsageError`."""

    def __init__(self, prog: str, description: str = "", epilog: str = "") -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UsageError`."""
        raise UsageError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.default in (None, False, (), argparse.SUPPRESS):
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})".replace("%", "%%")


def positive_int(text: str) -> int:
    """Return a number of things that an argument asks for: the ``type`` of an option.

    Raises:
        ArgumentTypeError: If it is no integer of at least 1.
    """
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer of at least 1")


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
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{name}: note: %(message)s"))
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known, text = len(told), record.getMessage()
        told.add(text)
        return is_told() and len(told) > known

    handler.addFilter(is_new)
    loggers = [logging.getLogger(package) for package in _PACKAGES]
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
        tell(" ".join(f"{name}: {line}".split()), code)
        return code

    def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(end("interrupted", INTERRUPTED))

    if sys.stderr is None:
        # What is printed there would go to standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return end("error: standard output is closed; redirect it to a file, or to /dev/null")
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
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
        return end(f"error: the system refused a file ({reason}); choose a folder that can be written and has space")
    except TnnError as error:
        return end(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return end(f"error: out of memory ({str(error)[:200]}); use a smaller batch or a smaller model")
    except KeyboardInterrupt as interrupt:
        # CPython kills its own process by SIGINT at the end if the last string it executed was interrupted (classes
        # are made that way during imports), although the interrupt was caught; an empty one clears its memory.
        exec("")  # noqa: S102
        return end(f"interrupted{'; ' if str(interrupt) else ''}{interrupt}", INTERRUPTED)
    return 0


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
