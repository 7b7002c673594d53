"""What the processes that ``torchrun`` has started say: each line once. Imports no torch before there is need to."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

from tnn_runtime.console import INTERRUPTED, tell

__all__ = ["is_first", "tell_once"]

_WAIT = timedelta(seconds=15)
"""How much later than another process the first one may come to the same error."""


def is_first() -> bool:
    """Return whether this is the only process, or the first of those that ``torchrun`` has started."""
    return not _is_launched() or os.environ["RANK"] == "0"


def tell_once(line: str, code: int) -> None:
    """Print the line that ends a command, once for all processes.

    The first process prints its own. Another one waits for what the first says, and prints what differs from that; but
    not that it was interrupted, which the first process is, too.

    Args:
        line: The line.
        code: The exit code of this process.
    """
    if not _is_launched():
        tell(line, code)
        return
    # When one process has ended, torchrun sends a signal to those that are still talking.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if is_first():
        tell(line, code)
    if code != INTERRUPTED and _said_by_first(line) != line:
        tell(f"{line} (process {os.environ['RANK']} of {os.environ['WORLD_SIZE']})", code)


def _said_by_first(line: str) -> str | None:
    """Return the line with which the first process has ended, in a moment; ``None`` if it has not, or is out of reach.

    Args:
        line: What this process has to say, which is passed on to the others if it is the first.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    key = f"tnn-train/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_WAIT)
        if is_first():
            store.set(key, line)
        return store.get(key).decode()
    except RuntimeError:
        return line if is_first() else None


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
