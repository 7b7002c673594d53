"""How tests wait: for what can be seen, and on a clock that only they move on; none races the time of day."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

__all__ = ["FOREVER", "Clock", "exchange_condition", "until"]

FOREVER = 120
"""Seconds after which a test that waits is taken to hang, however busy the machine is."""


def until(condition: Callable[[], object]) -> None:
    """Wait until something can be seen."""
    end = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < end, f"it did not come about in {FOREVER} s"
        time.sleep(0.01)


def exchange_condition(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, condition: type[threading.Condition]
) -> None:
    """Let a module that imports `threading` make conditions of another class."""
    monkeypatch.setattr(module, "threading", SimpleNamespace(**{**vars(threading), "Condition": condition}))


class Clock:
    """A clock that stands still until a test moves it on.

    Args:
        monkeypatch: Takes it back at the end of the test.
        modules: Those that read it instead of `time`. Where their threads wait on a condition with a timeout, they wait
            for this clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = 0.0
        self._alarms: dict[threading.Condition, float] = {}
        clock = self

        class Condition(threading.Condition):
            def wait(self, timeout: float | None = None) -> bool:
                clock._alarms[self] = math.inf if timeout is None else clock.now + timeout
                try:
                    return super().wait()
                finally:
                    del clock._alarms[self]

        for module in modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self._read, perf_counter=self._read))
            if hasattr(module, "threading"):
                exchange_condition(monkeypatch, module, Condition)

    @property
    def alarms(self) -> list[float]:
        """The moments that threads wait for; infinity where they only wait to be notified."""
        return sorted(self._alarms.copy().values())

    def advance(self, moment: float) -> float:
        """Let a moment come, as soon as a thread waits for it or for an earlier one, and return what it waited for.

        One thread at a time may wait on a condition.
        """
        until(lambda: self._due(moment))
        due = self._due(moment)
        self.now = moment
        for condition in due:
            with condition:
                condition.notify()
        return min(due.values())

    def _due(self, moment: float) -> dict[threading.Condition, float]:
        return {condition: alarm for condition, alarm in self._alarms.copy().items() if alarm <= moment}

    def _read(self) -> float:
        return self.now
