"""Requests that get no answer are counted, and logged at a bounded rate."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from conftest import FIXTURES

from tnn_runtime import (
    Classifier,
    ClassifierClosed,
    DeadlineExceeded,
    InputError,
    QueueFull,
    ResourcesExhausted,
    TnnError,
)
from tnn_runtime.queue.failures import BoundedLog, Failures
from tnn_runtime.queue.metrics import Metrics

LOG = logging.getLogger("tnn_runtime.test")
IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_a_warning_is_written_at_once_and_then_with_the_number_of_those_held_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    log = BoundedLog(LOG, lambda: now)
    for step in range(1000):
        log.warning("full", "image %d was refused", step)
        if step % 100 == 0:
            log.warning("late", "image %d is late", step, count=2)
    assert caplog.messages == ["image 0 was refused", "image 0 is late"]
    now += 12.0
    caplog.clear()
    log.warning("full", "image %d was refused", 7)
    log.warning("late", "image %d is late", 8)
    now += 12.0
    log.warning("full", "image %d was refused", 9)
    assert caplog.messages == [
        "image 7 was refused (999 more like this in the last 12 s)",
        "image 8 is late (18 more like this in the last 12 s)",
        "image 9 was refused",
    ]


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [
        (QueueFull("full"), True),
        (DeadlineExceeded("late"), True),
        (ResourcesExhausted("no memory"), True),
        (InputError("no image"), False),
        (ClassifierClosed("closed"), False),
    ],
)
def test_overload_is_logged_and_faults_of_senders_are_not(
    error: TnnError, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    failures = Failures(metrics, LOG)
    for _ in range(5):
        failures.add(error, 2)
    assert metrics.read().failures == {type(error).__name__: 10}
    assert caplog.messages == ([f"{type(error).__name__}: {error}"] if is_logged else [])


def test_a_service_under_overload_writes_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    with Classifier.load(FIXTURES / "bundle-v2", "cpu", max_queue_size=1, max_batch_size=1) as classifier:
        refused = 0
        while refused < 100:
            try:
                classifier.submit(IMAGE)
            except QueueFull:
                refused += 1
        assert classifier.metrics.failures["QueueFull"] == refused
    assert len([record for record in caplog.records if "QueueFull" in record.getMessage()]) < 10
