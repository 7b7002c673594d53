"""The queue, over models that are as slow, as broken or as lost as a test needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import FOREVER, Clock, until

from tnn_runtime import ClassifierClosed, DeadlineExceeded, DeviceLost, QueueFull, RunError, UsageError
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.results import Answers
from tnn_runtime.queue import batching, replicas
from tnn_runtime.queue.batching import Batcher, QueueOptions, Request
from tnn_runtime.queue.lifecycle import Lifecycle
from tnn_runtime.queue.metrics import Metrics
from tnn_runtime.queue.replicas import Replica, Replicas


class Model:
    """A backend whose logit is the only pixel of an image; it waits where the test holds it."""

    versions: dict[str, str] = {}  # noqa: RUF012
    details: dict[str, Any] = {}  # noqa: RUF012
    threads = 1

    def __init__(self, device: str = "cpu", concurrency: int = 1, batch_sizes: tuple[int, ...] = ()) -> None:
        self.device, self.concurrency, self.batch_sizes = device, concurrency, batch_sizes
        self.sizes: list[int] = []
        self.runs = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        self.runs.release()
        assert self.go.wait(FOREVER)
        if self.error is not None:
            raise self.error
        values = images.reshape(len(images), 1).astype(np.float32)
        return Outputs(values, values)

    def close(self) -> None:
        pass


class Queue:
    """A batcher with what it needs, and short words for what tests do with it."""

    def __init__(self, *models: Model, size: int = 4, delay: float = 0.0, limit: int = 100) -> None:
        self.metrics, self.lifecycle = Metrics(), Lifecycle()
        self.replicas = Replicas([Replica(model, 1, "as asked", self.metrics) for model in models])
        self.batcher = Batcher(
            self.replicas,
            partial(Answers, class_names=["a"]),
            QueueOptions(size, delay, limit),
            self.lifecycle,
            self.metrics,
        )

    def send(self, value: int, timeout: float | None = None, answer: Callable[..., Any] | None = None) -> Request:
        request = Request(answer or (lambda answers, row: int(answers.logits[row, 0])), timeout)
        self.batcher.accept([request])
        self.batcher.put(request, np.full((1, 1, 1), value, np.uint8))
        return request


@contextmanager
def queue(*models: Model, **options: Any) -> Iterator[Queue]:
    made = Queue(*models, **options)
    try:
        yield made
    finally:
        for model in models:
            model.go.set()
        made.batcher.close()
        assert made.lifecycle.open_requests == 0
        assert made.metrics.read().waiting == made.metrics.read().running == 0
        assert not [thread for thread in threading.enumerate() if thread in made.batcher._threads]


@contextmanager
def busy(model: Model, made: Queue) -> Iterator[Future[Any]]:
    """Hold the model in a batch of one image."""
    model.go.clear()
    first = made.send(255)
    assert model.runs.acquire(timeout=FOREVER)
    yield first
    model.go.set()


def test_whoever_submits_holds_a_plain_future() -> None:
    def public(future: Future[Any]) -> set[str]:
        return {name for name in dir(future) if not name.startswith("_")}

    model = Model()
    with queue(model) as made:
        request = made.send(1)
        assert request.result(FOREVER) == 1
    assert public(request) == public(Future())


def test_images_gather_while_the_model_is_busy() -> None:
    model = Model()
    with queue(model) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(10)]
        assert [request.result(FOREVER) for request in requests] == list(range(10))
    assert model.sizes == [1, 4, 4, 2]


def test_a_full_batch_begins_at_once_and_a_part_of_one_after_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = Model(), Clock(monkeypatch, batching)
    with queue(model, delay=0.25) as made:
        assert [request.result(FOREVER) for request in [made.send(value) for value in range(4)]] == [0, 1, 2, 3]
        requests = [made.send(1), made.send(2)]
        assert clock.advance(0.25) == 0.25
        assert [request.result(FOREVER) for request in requests] == [1, 2]
    assert model.sizes == [4, 2]


def test_an_image_with_little_time_does_not_wait_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = Model(), Clock(monkeypatch, batching)
    with queue(model, delay=3600.0) as made:
        patient = made.send(1)
        until(lambda: clock.alarms == [3600.0])
        hasty = made.send(2, timeout=1.0)
        assert clock.advance(0.75) == 0.5
        assert [hasty.result(FOREVER), patient.result(FOREVER)] == [2, 1]
    assert model.sizes == [2]


def test_the_queue_has_an_end() -> None:
    model = Model()
    with queue(model, limit=3) as made:
        with busy(model, made) as first:
            requests = [made.send(value) for value in range(3)]
            with pytest.raises(QueueFull, match=r"3 images wait, and 1 more would be over the limit of 3; send them"):
                made.send(3)
            requests[0].cancel()
            requests.append(made.send(4))
        assert [request.result(FOREVER) for request in [first, *requests[1:]]] == [255, 1, 2, 4]
        with pytest.raises(QueueFull, match="0 images wait, and 4 more"):
            made.batcher.accept([Request(print) for _ in range(4)])


def test_a_deadline_is_kept_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = Model(), Clock(monkeypatch, batching)
    with queue(model) as made:
        with busy(model, made):
            late, patient = made.send(1, timeout=0.5), made.send(2, timeout=1.0)
            clock.now = 0.75
        with pytest.raises(DeadlineExceeded, match=r"did not begin within its 0.5 s; send fewer images"):
            late.result(FOREVER)
        assert patient.result(FOREVER) == 2
        assert made.metrics.read().failures == {"DeadlineExceeded": 1}
    assert model.sizes == [1, 1]


def test_a_cancelled_image_is_not_run_and_one_that_runs_cannot_be_cancelled() -> None:
    model = Model()
    with queue(model) as made:
        with busy(model, made) as running:
            request = made.send(1)
            assert request.cancel()
            assert not running.cancel()
        assert running.result(FOREVER) == 255
        with pytest.raises(CancelledError):
            request.result(FOREVER)
        assert made.send(2).result(FOREVER) == 2
        assert made.metrics.read().failures == {"Cancelled": 1}
    assert model.sizes == [1, 1]


def test_nothing_is_decoded_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    model, decoded, clock = Model(), [], Clock(monkeypatch, batching)

    def decode(value: int) -> NDArray[np.uint8]:
        decoded.append(value)
        return np.full((1, 1, 1), value, np.uint8)

    with queue(model) as made:
        requests = [Request(print), Request(print, timeout_s=0.0), Request(lambda answers, row: decoded[0])]
        made.batcher.accept(requests)
        requests[0].cancel()
        clock.now = 0.001
        for value, request in enumerate(requests):
            made.batcher.prepare(request, lambda value=value: decode(value))  # type: ignore[misc]
        assert requests[2].result(FOREVER) == 2
        assert isinstance(requests[1].exception(FOREVER), DeadlineExceeded)
    assert decoded == [2]


def test_a_bad_image_and_a_bad_answer_fail_alone() -> None:
    model = Model()

    def refuse(answers: Answers, row: int) -> None:
        raise ValueError("no answer")

    with queue(model) as made:
        with busy(model, made):
            bad = Request(print)
            made.batcher.accept([bad])
            made.batcher.prepare(bad, lambda: np.zeros(1, np.uint8)[3])
            requests = [made.send(1), made.send(2, answer=refuse), made.send(3)]
        assert isinstance(bad.exception(FOREVER), IndexError)
        assert [requests[0].result(FOREVER), requests[2].result(FOREVER)] == [1, 3]
        with pytest.raises(ValueError, match="no answer"):
            requests[1].result(FOREVER)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RunError("out of memory"), RunError, "out of memory"),
        (ZeroDivisionError("a bug"), RunError, r"the batch of this image failed \(ZeroDivisionError: a bug\)"),
    ],
)
def test_a_failed_batch_is_told_to_all_of_it_and_the_next_one_runs(
    error: Exception, kind: type[Exception], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with queue(model) as made:
        with busy(model, made) as first:
            requests = [made.send(1), made.send(2)]
            model.error = error
        errors = [request.exception(FOREVER) for request in [first, *requests]]
        model.error = None
        assert made.send(3).result(FOREVER) == 3
    assert len({id(found) for found in errors}) == 3
    for found in errors:
        with pytest.raises(kind, match=message):
            raise found or AssertionError
    assert "batch of 2 images failed on cpu" in caplog.text


def test_a_lost_device_is_lost_for_good() -> None:
    model = Model()
    with queue(model) as made:
        with busy(model, made) as first:
            waiting = [made.send(value) for value in range(6)]
            model.error = DeviceLost("cuda:0 is lost (illegal address); restart this process")
        first.exception(FOREVER)
        model.error = None
        for request in [first, *waiting]:
            with pytest.raises(DeviceLost, match="restart this process"):
                request.result(FOREVER)
        for thread in made.batcher._threads:
            thread.join(FOREVER)
        with pytest.raises(DeviceLost, match="restart this process"):
            made.send(3)
        with pytest.raises(DeviceLost, match="restart this process"):
            made.replicas.run(np.zeros((1, 1, 1, 1), np.uint8))
    assert model.sizes == [1]


def test_the_other_replica_serves_when_one_is_lost() -> None:
    lost, well = Model("cuda:0"), Model("cuda:1")
    lost.error = DeviceLost("cuda:0 is lost")
    with queue(lost, well, size=1) as made:
        well.go.clear()
        requests = [made.send(value) for value in range(40)]
        assert lost.runs.acquire(timeout=FOREVER)
        well.go.set()
        wait(requests, FOREVER)
        failures = [request for request in requests if request.exception()]
        assert len(failures) == len(lost.sizes) == 1
        assert made.send(7).result(FOREVER) == 7
        assert made.replicas.run(np.full((1, 1, 1, 1), 9, np.uint8)).logits[0, 0] == 9


def test_replicas_and_concurrent_runs_work_side_by_side() -> None:
    models = [Model("cuda:0", concurrency=2), Model("cuda:1", concurrency=1)]
    for model in models:
        model.go.clear()
    with queue(*models, size=1) as made:
        requests = [made.send(value) for value in range(5)]
        for model, runs in zip(models, (2, 1), strict=True):
            for _ in range(runs):
                assert model.runs.acquire(timeout=FOREVER)
        assert made.metrics.read().running == 3
        assert made.metrics.read().waiting == 2
        for model in models:
            model.go.set()
        assert [request.result(FOREVER) for request in requests] == list(range(5))


def test_batches_are_filled_up_to_the_sizes_of_the_backend() -> None:
    model = Model(batch_sizes=(2, 4, 8))
    with queue(model, size=8) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(5)]
        assert [request.result(FOREVER) for request in requests] == list(range(5))
    assert model.sizes == [2, 8]
    assert made.metrics.read().images == 6


def test_closing_tells_those_who_wait() -> None:
    model = Model()
    made = Queue(model)
    with busy(model, made) as running:
        request, accepted = made.send(1), Request(print)
        made.batcher.accept([accepted])
        closing = threading.Thread(target=made.batcher.close)
        closing.start()
        with pytest.raises(ClassifierClosed, match="closed while the image waited; drain it before you close it"):
            request.result(FOREVER)
        made.batcher.prepare(accepted, lambda: pytest.fail("decoded for nobody"))
        assert isinstance(accepted.exception(FOREVER), ClassifierClosed)
    closing.join(FOREVER)
    assert running.result(0) == 255
    with pytest.raises(ClassifierClosed):
        made.send(1)
    made.batcher.close()


def test_a_callback_cannot_close_its_own_classifier() -> None:
    model, errors = Model(), []

    def close(future: Future[Any]) -> None:
        try:
            made.batcher.close()
        except UsageError as error:
            errors.append(str(error))

    with queue(model) as made:
        with busy(model, made) as first:
            first.add_done_callback(close)
        first.result(FOREVER)
        made.send(1).result(FOREVER)
    assert errors == ["a callback of a future closes its own classifier; close it from another thread"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_thread_leaves_nobody_waiting() -> None:
    model = Model()

    def leave(future: Future[Any]) -> None:
        raise GeneratorExit

    with queue(model) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(6)]
            requests[1].add_done_callback(leave)
        assert [request.result(FOREVER) for request in requests[:2]] == [0, 1]
        for request in requests[2:]:
            with pytest.raises(RunError, match="a callback ended the thread that runs batches; load the bundle again"):
                request.result(FOREVER)
        for thread in made.batcher._threads:
            thread.join(FOREVER)
        with pytest.raises(RunError, match="load the bundle again"):
            made.send(1)


def test_what_happens_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = Model(), Clock(monkeypatch, batching, replicas)
    with queue(model) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(6)]
            assert made.metrics.read().waiting == 6
            assert made.metrics.read().running == 1
            clock.now = 2.0
        wait(requests, FOREVER)
        found = made.metrics.read()
    assert (found.images, found.failures) == (7, {})
    assert (found.batch_sizes.count, found.batch_sizes.total) == (3, 7)
    assert found.batch_sizes.counts[:3] == (1, 1, 1)
    assert (found.queue_seconds.count, found.queue_seconds.total) == (7, 12.0)
    assert (found.inference_seconds.count, found.inference_seconds.total) == (3, 2.0)


class Telling(DeviceLost):
    """An error whose constructor takes something else than its arguments."""

    def __init__(self, code: int, *, device: str) -> None:
        super().__init__(f"code {code} on {device}")
        self.code = code


@pytest.mark.parametrize("cause", [RuntimeError("a library"), None])
def test_everybody_gets_a_whole_error_of_its_own(cause: Exception | None) -> None:
    model = Model()
    model.error = Telling(700, device="cuda:0")
    model.error.__cause__ = cause
    model.error.add_note("a note")
    with queue(model) as made:
        with busy(model, made) as first:
            waiting = [made.send(value) for value in range(5)]
        errors = [request.exception(FOREVER) for request in [first, *waiting]]
        for thread in made.batcher._threads:
            thread.join(FOREVER)
        for call in (lambda: made.send(1), lambda: made.replicas.run(np.zeros((1, 1, 1, 1), np.uint8))):
            with pytest.raises(Telling) as caught:
                call()
            errors.append(caught.value)
    assert len({id(error) for error in [model.error, *errors]}) == 9
    for error in errors:
        assert isinstance(error, Telling)
        assert (str(error), error.code, error.__notes__) == ("code 700 on cuda:0", 700, ["a note"])
        assert error.__cause__ is cause


def test_the_error_behind_a_failed_batch_is_its_cause() -> None:
    model = Model()
    model.error = ZeroDivisionError("a bug")
    with queue(model) as made:
        error = made.send(1).exception(FOREVER)
    assert isinstance(error, RunError)
    assert error.__cause__ is model.error
