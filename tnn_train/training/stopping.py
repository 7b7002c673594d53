"""Signals that ask a training to stop, heard between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StopRequest", "listen"]

_SECONDS_OF_ONE = 2.0
"""``timeout`` and ``torchrun`` pass a signal on that all their processes have got, too: that is one request."""


class StopRequest:
    """Whether SIGTERM or SIGINT (Ctrl-C) has asked the training to stop."""

    def __init__(self) -> None:
        self.received = False
        self._since = 0.0

    def _receive(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self._since = True, time.monotonic()
        elif time.monotonic() - self._since >= _SECONDS_OF_ONE:
            raise KeyboardInterrupt


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Yield a request that the first signal sets; one two seconds later or more raises ``KeyboardInterrupt`` at once.

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
