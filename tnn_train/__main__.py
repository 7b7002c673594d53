"""The command ``tnn-train``; the rest is imported inside it, so that a missing package is one clear line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tnn_runtime.console import run
from tnn_train.messages import tell_once

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``tnn-train`` and return its exit code."""
    return run("tnn-train", "tnn_train.commands.train", arguments, extra="train", tell=tell_once)


if __name__ == "__main__":
    sys.exit(main())
