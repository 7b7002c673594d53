"""The one thread in which callbacks of futures run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias

__all__ = ["Callbacks"]

_LOG = logging.getLogger(__name__)

_Callback: TypeAlias = Callable[[Future[Any]], object]


class Callbacks:
    """Runs the callbacks of futures, one after another, in a thread of its own.

    What callers do there, and how long it takes, can then neither stop nor delay the threads that run batches and
    decode. A callback that raises an error is logged, and the next one runs.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[_Callback, Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tnn-callbacks", daemon=True)
        self._lock = threading.Lock()
        self._is_open = True

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: If the system does not allow another one.
        """
        self._thread.start()

    def run(self, callback: _Callback, future: Future[Any]) -> None:
        """Let a callback run after those that wait; at once, and here, if all is closed."""
        with self._lock:
            if self._is_open:
                self._waiting.put((callback, future))
                return
        _call(callback, future)

    def close(self) -> None:
        """End the thread when it has run all callbacks; wait for that, unless this is called by one of them."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
            if was_open:
                self._waiting.put(None)
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            _call(*waiting)


def _call(callback: _Callback, future: Future[Any]) -> None:
    try:
        callback(future)
    except BaseException:  # also what ends a thread, such as SystemExit
        _LOG.exception("a callback of a future has failed")
