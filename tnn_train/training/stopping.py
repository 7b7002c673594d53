"""Signals that ask a training to stop, heard between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StopRequest", "listen"]


class StopRequest:
    """Whether SIGTERM or SIGINT (Ctrl-C) has asked the training to stop."""

    def __init__(self) -> None:
        self.received = False

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Yield a request that the first signal sets; a second one raises ``KeyboardInterrupt`` at once.

    Outside the main thread, where Python hears no signals, nothing is set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, request._receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
