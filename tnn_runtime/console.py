"""What the three commands share: one-line errors, exit code 1, and no traceback on bad input."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from PIL import Image

from tnn_runtime.errors import TnnError, UsageError

__all__ = ["Parser", "run"]


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


def run(
    name: str,
    command: Callable[[Sequence[str]], None],
    arguments: Sequence[str] | None = None,
    *,
    extra: str = "dev",
) -> int:
    """Run a command and return its exit code: 0, or 1 after one line on standard error.

    Args:
        name: What to call the command in an error.
        command: What to run.
        arguments: Its arguments, by default those of the process.
        extra: The extra of this distribution that brings the packages it needs.
    """
    # Images over our limit are refused in one line; Pillow would add a warning of its own.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with _interrupts():
            command(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        return _fail(f"{name}: error: {error.name} is not installed; run: pip install 'tnn-deploy[{extra}]'")
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
        return _fail(
            f"{name}: error: the system refused a file ({reason}); choose a folder that can be written and has space"
        )
    except TnnError as error:
        return _fail(f"{name}: error: {error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail(f"{name}: error: out of memory ({str(error)[:200]}); use a smaller batch or a smaller model")
    except KeyboardInterrupt as interrupt:
        # CPython kills its own process by SIGINT at the end if the last string it executed was interrupted (classes
        # are made that way during imports), although the interrupt was caught; an empty one clears its memory.
        exec("")  # noqa: S102
        return _fail(f"{name}: interrupted{'; ' if str(interrupt) else ''}{interrupt}")
    return 0


def _fail(line: str) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return 1


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGINT and SIGTERM, also where other code turned it into another error."""
    received = False

    def interrupt(number: int, frame: object) -> NoReturn:
        nonlocal received
        received = True
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if received:
            raise KeyboardInterrupt from error
        raise
