"""The command ``tnn-runtime``; the rest is imported inside it, so that a missing package is one clear line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tnn_runtime.console import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tnn-runtime`` and return its exit code."""
    return run("tnn-runtime", _command, arguments, extra="cpu")


def _command(arguments: Sequence[str]) -> None:
    from tnn_runtime.cli import command

    command(arguments)


if __name__ == "__main__":
    sys.exit(main())
