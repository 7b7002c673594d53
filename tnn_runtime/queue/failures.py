"""Requests that get no answer: each is counted, and what an operator should know of is logged at a bounded rate."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tnn_runtime.errors import DeadlineExceeded, QueueFull, ResourcesExhausted
from tnn_runtime.queue.metrics import Metrics

__all__ = ["BoundedLog", "Failures"]

_INTERVAL_S = 10.0
"""Seconds between two lines of one kind, at least."""

_OVERLOAD = (QueueFull, DeadlineExceeded, ResourcesExhausted)


class BoundedLog:
    """Writes the first warning of each kind at once, and then at most one each few seconds, with how many there were.

    Args:
        log: Where they are written.
        clock: Returns seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}

    def warning(
        self, kind: str, message: str, *values: Any, count: int = 1, error: BaseException | None = None
    ) -> None:
        """Write a warning, unless one of its kind has just been written.

        Args:
            kind: Which warnings count as the same.
            message: What to write, with places for the values as in `logging`.
            *values: The values.
            count: How many events it stands for.
            error: An error whose traceback is written with it.
        """
        now = self._clock()
        with self._lock:
            written, held_back = self._kinds.get(kind, (now - _INTERVAL_S, 0))
            if now - written < _INTERVAL_S:
                self._kinds[kind] = written, held_back + count
                return
            self._kinds[kind] = now, 0
        if held_back:
            message += f" ({held_back} more like this in the last {now - written:.0f} s)"
        self._log.warning(message, *values, exc_info=error)


class Failures:
    """Counts requests that get no answer, and logs those that were refused for want of room, time or resources.

    Args:
        metrics: Where they are counted.
        log: Where they are logged.

    Attributes:
        log: The same, at a bounded rate.
    """

    def __init__(self, metrics: Metrics, log: logging.Logger) -> None:
        self.log = BoundedLog(log)
        self._metrics = metrics

    def add(self, error: BaseException, count: int = 1) -> None:
        """Count requests that got an error."""
        kind = type(error).__name__
        self._metrics.failed(kind, count)
        if isinstance(error, _OVERLOAD):
            self.log.warning(kind, "%s: %s", kind, error, count=count)

    def cancelled(self) -> None:
        """Count a request that was cancelled."""
        self._metrics.failed("Cancelled")
