"""Arguments that are checked in one place."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from waiting import FOREVER, exchange_condition

from tnn_runtime import Classifier, UsageError
from tnn_runtime.options import at_least_one, device_list, seconds
from tnn_runtime.queue import batching

BUNDLE = FIXTURES / "bundle-v2"


class Rude:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "value",
    [True, np.zeros((9, 9)), 10**400, 10**5000, [10**5000], Rude(), "two\nlines" * 100, object()],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_given_its_error_is_a_short_line(value: Any) -> None:
    for check in (
        lambda: at_least_one(top_k=value),
        lambda: seconds([value], "timeout_s"),
        lambda: device_list([value, "auto"]),
    ):
        with pytest.raises(UsageError) as raised:
            check()
        assert len(str(raised.value).splitlines()) == 1
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize("device", [np.zeros(3), [None], 3, [b"cpu"], [["cpu"]]])
def test_a_device_has_a_name(device: Any) -> None:
    with pytest.raises(UsageError, match="unknown device .*; expected a name such as 'auto', or a list of names"):
        Classifier.load(BUNDLE, device)


@pytest.mark.parametrize("value", [10**400, 1e300, threading.TIMEOUT_MAX], ids=["int", "float", "longest"])
def test_times_that_no_system_can_wait_are_as_long_as_it_can(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds(value, "timeout_s") < threading.TIMEOUT_MAX
    waits = threading.Event()

    class Condition(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None:
                waits.set()
            return super().wait(timeout)

    exchange_condition(monkeypatch, batching, Condition)
    image = np.zeros((8, 8, 3), np.uint8)
    with Classifier.load(BUNDLE, "cpu", max_queue_delay_ms=value, timeout_s=value, max_batch_size=2) as classifier:
        first = classifier.submit(image)
        assert waits.wait(FOREVER)
        second = classifier.submit(image)
        assert len(first.result(FOREVER)) == len(second.result(FOREVER)) == 2
        assert classifier.drain(value)
