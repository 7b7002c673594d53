"""What the three commands share: one-line errors, exit code 1, and no traceback on bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tnn_runtime.errors import TnnError, UsageError

__all__ = ["Parser", "run"]


class Parser(argparse.ArgumentParser):
    """An argument parser with defaults in its help and errors that are a `UsageError`."""

    def __init__(self, prog: str, description: str = "", epilog: str = "") -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UsageError`."""
        raise UsageError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def run(name: str, command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 after one line on standard error."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except (TnnError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted{'; ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
    else:
        return 0
    return 1
