"""What a classifier has accepted and not yet answered."""

from __future__ import annotations

import os
import threading
import time

from tnn_runtime.errors import ClassifierClosed

__all__ = ["Lifecycle"]


class Lifecycle:
    """Counts requests from acceptance to answer, and accepts none after `stop`."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open = 0
        self._refusal = ""
        self._awaited = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def open_requests(self) -> int:
        """How many requests were accepted and are not yet answered."""
        return self._open

    @property
    def is_fork(self) -> bool:
        """Whether this process is a fork of the one that loaded the classifier; locks may be held there for ever."""
        return os.getpid() != self._process

    @property
    def refusal(self) -> str:
        """Why requests are refused; empty while they are accepted."""
        if self.is_fork:
            return (
                f"this classifier was loaded in process {self._process} and is used in {os.getpid()}, a fork of it, "
                "where its threads are missing; load the bundle after the fork"
            )
        return self._refusal

    def check_process(self) -> None:
        """Make sure that this process is the one that loaded the classifier.

        Raises:
            ClassifierClosed: If it is a fork of that one.
        """
        if self.is_fork:
            raise ClassifierClosed(self.refusal)

    def check(self) -> None:
        """Make sure that requests are accepted.

        Raises:
            ClassifierClosed: If they are not, with the reason.
        """
        if refusal := self.refusal:
            raise ClassifierClosed(refusal)

    def accept(self, count: int = 1) -> None:
        """Count requests that are accepted now, in the process that loaded the classifier (see `check_process`).

        Each must be followed by `answered`.

        Raises:
            ClassifierClosed: If they are not accepted.
        """
        with self._lock:
            if self._refusal:
                raise ClassifierClosed(self._refusal)
            self._open += count

    def answered(self, count: int = 1) -> None:
        """Count requests that have their answer."""
        with self._lock:
            self._open -= count
            if self._awaited and not self._open:
                self._changed.notify_all()

    def stop(self, refusal: str) -> None:
        """Accept nothing from now on, for this reason."""
        with self._lock:
            self._refusal = refusal

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was accepted is answered, and return whether it is."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            self._awaited = True
            while self._open:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True
