"""A clock that ends requests when their time is over."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["Deadlines"]

_LOG = logging.getLogger(__name__)
_SPARE = 1024


class _Endable(Protocol):
    def done(self) -> bool: ...


E = TypeVar("E", bound=_Endable)


class Deadlines(Generic[E]):
    """Calls a function for each of some things when its deadline has passed, unless it is done by then.

    Args:
        expire: The function; it is called in the thread of the clock.
    """

    def __init__(self, expire: Callable[[E], object]) -> None:
        self._expire = expire
        self._coming: list[tuple[float, int, E]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._most = _SPARE

    def start(self) -> None:
        """Start the thread, if it does not run yet.

        Raises:
            RuntimeError: If the system does not allow another one.
        """
        with self._changed:
            if self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._work, name="tnn-deadlines", daemon=True)
                thread.start()
                self._thread = thread

    def add(self, thing: E, deadline: float) -> None:
        """Watch a thing until a moment of `time.monotonic`."""
        with self._changed:
            if len(self._coming) > self._most:
                self._forget_done()
            heapq.heappush(self._coming, (deadline, next(self._numbers), thing))
            if self._coming[0][2] is thing:
                self._changed.notify()

    def close(self) -> None:
        """End the thread; deadlines that have not passed yet are forgotten."""
        with self._changed:
            self._is_closed = True
            self._coming.clear()
            self._changed.notify()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (thing := self._next()) is not None:
            try:
                self._expire(thing)
            except Exception:  # the deadlines of the others must be kept all the same
                _LOG.exception("a deadline could not be kept")

    def _next(self) -> E | None:
        """Wait for the next deadline that passes, and return what it belongs to; ``None`` at the end."""
        with self._changed:
            while not self._is_closed:
                left = self._coming[0][0] - time.monotonic() if self._coming else None
                if left is None or left > 0:
                    self._changed.wait(left)
                elif not (thing := heapq.heappop(self._coming)[2]).done():
                    return thing
        return None

    def _forget_done(self) -> None:
        self._coming = [entry for entry in self._coming if not entry[2].done()]
        heapq.heapify(self._coming)
        self._most = max(_SPARE, 2 * len(self._coming))
