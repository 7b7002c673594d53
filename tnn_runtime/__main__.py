"""The command ``tnn-runtime``; the rest is imported inside it, so that a missing package is one clear line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tnn_runtime.console import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tnn-runtime`` and return its exit code."""
    return run("tnn-runtime", "tnn_runtime.commands.predict", arguments, extra="cpu")


if __name__ == "__main__":
    sys.exit(main())
