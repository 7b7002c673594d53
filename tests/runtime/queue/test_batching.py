"""The queue, over models that are as slow, as broken or as lost as a test needs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import FOREVER, Clock, until

from tnn_runtime import ClassifierClosed, DeadlineExceeded, DeviceLost, QueueFull, ResourcesExhausted, RunError
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.results import Answers
from tnn_runtime.backends.batches import fill_up
from tnn_runtime.queue import batching, replicas
from tnn_runtime.queue.batching import Batcher, QueueOptions, Request
from tnn_runtime.queue.failures import Failures
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
        self.error: BaseException | None = None

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        self.runs.release()
        assert self.go.wait(FOREVER)
        if self.error is not None:
            raise self.error
        values = images.reshape(len(images), 1).astype(np.float32)
        return Outputs(values, values)

    def warm_up(self) -> None:
        pass

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
            Failures(self.metrics, logging.getLogger("tnn_runtime")),
            elsewhere=lambda work: work(),
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
    assert "batch of 1 images failed on cpu" in caplog.text, "the second is held back, to bound the log"
    assert "batch of 2 images" not in caplog.text


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


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_wait_for_a_slot_of_a_gpu_is_no_part_of_a_run(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, metrics = Clock(monkeypatch, replicas), Metrics()
    model = Model("cuda:0", slots, batch_sizes=(1,))
    replica = Replica(model, 1, "as asked", metrics)
    arrived = threading.Semaphore(0)

    def fill(*arguments: Any) -> Any:
        arrived.release()
        return fill_up(*arguments)

    monkeypatch.setattr(replicas, "fill_up", fill)
    model.go.clear()
    with ThreadPoolExecutor(slots + 1) as pool:
        calls = [pool.submit(replica.run, np.zeros((1, 1, 1, 1), np.uint8)) for _ in range(slots + 1)]
        try:
            for _ in calls:
                assert arrived.acquire(timeout=FOREVER)
            for _ in range(slots):
                assert model.runs.acquire(timeout=FOREVER)
            assert not model.runs.acquire(timeout=0.05)  # the last one never runs before another one ends
            assert metrics.read().running == slots
            clock.now = 7.0
        finally:
            model.go.set()
        wait(calls)
    found = metrics.read().inference_seconds
    assert (found.count, found.total) == (slots + 1, 7.0 * slots)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_batch_of_a_lost_replica_moves_to_another_one(concurrency: int) -> None:
    lost, well = Model("cuda:0", concurrency), Model("cuda:1", concurrency)
    lost.error = DeviceLost("cuda:0 is lost")
    with queue(lost, well, size=1) as made:
        well.go.clear()
        requests = [made.send(value) for value in range(40)]
        assert lost.runs.acquire(timeout=FOREVER)
        well.go.set()
        assert [request.result(FOREVER) for request in requests] == list(range(40))
        assert made.send(7).result(FOREVER) == 7
        assert made.replicas.run(np.full((1, 1, 1, 1), 9, np.uint8)).logits[0, 0] == 9


def test_a_call_of_a_lost_replica_moves_to_another_one() -> None:
    lost, well = Model("cuda:0"), Model("cuda:1")
    lost.error = DeviceLost("cuda:0 is lost")
    with queue(lost, well) as made:
        for value in range(3):
            assert made.replicas.run(np.full((1, 1, 1, 1), value, np.uint8)).logits[0, 0] == value
    assert lost.sizes == [1]


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


def test_callbacks_run_in_one_thread_which_they_cannot_end() -> None:
    model, threads = Model(), []

    def leave(error: type[BaseException], future: Future[Any]) -> None:
        threads.append(threading.current_thread())
        raise error

    with queue(model) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(6)]
            bad = Request(print)
            made.batcher.accept([bad])
            for request, error in zip(
                [*requests, bad], 7 * [SystemExit, GeneratorExit, ZeroDivisionError], strict=False
            ):
                request.add_done_callback(partial(leave, error))
            made.batcher.prepare(bad, lambda: np.zeros(1, np.uint8)[3])
        assert [request.result(FOREVER) for request in requests] == list(range(6))
        assert made.send(7).result(FOREVER) == 7
        until(lambda: len(threads) == 7)
    assert len(set(threads)) == 1
    assert not set(threads) & {*made.batcher._threads, threading.main_thread()}


@pytest.mark.parametrize("call", ["close", "wait", "run", "send"])
def test_a_callback_may_call_what_it_belongs_to(call: str) -> None:
    model, done = Model(), threading.Event()
    made = Queue(model)
    calls: dict[str, Callable[[], object]] = {
        "close": made.batcher.close,
        "wait": made.lifecycle.wait,
        "run": lambda: made.replicas.run(np.zeros((1, 1, 1, 1), np.uint8)),
        "send": lambda: made.send(3).result(FOREVER),
    }

    def act(future: Future[Any]) -> None:
        calls[call]()
        done.set()

    with busy(model, made) as first:
        first.add_done_callback(act)
    assert first.result(FOREVER) == 255
    assert done.wait(FOREVER)
    made.batcher.close()
    assert made.lifecycle.open_requests == 0


def test_a_deadline_is_told_while_the_model_is_busy_and_frees_its_place() -> None:
    model = Model()
    with queue(model, limit=2) as made:
        with busy(model, made):
            late = [made.send(1, timeout=0.01), made.send(2, timeout=0.01)]
            for request in late:
                with pytest.raises(DeadlineExceeded, match=r"did not begin within its 0.01 s"):
                    request.result(FOREVER)
            assert made.metrics.read().waiting == len(made.batcher._queue) == 0
            others = [made.send(3), made.send(4)]
        assert [request.result(FOREVER) for request in others] == [3, 4]
    assert model.sizes == [1, 2]


def test_a_deadline_is_told_while_the_image_is_decoded() -> None:
    model, decoding, go = Model(), threading.Event(), threading.Event()

    def decode() -> NDArray[np.uint8]:
        decoding.set()
        assert go.wait(FOREVER)
        return np.zeros((1, 1, 1), np.uint8)

    with queue(model) as made:
        slow = Request(print, timeout_s=0.01)
        made.batcher.accept([slow])
        decoder = threading.Thread(target=made.batcher.prepare, args=(slow, decode))
        decoder.start()
        if decoding.wait(1):
            assert isinstance(slow.exception(FOREVER), DeadlineExceeded)
        go.set()
        decoder.join(FOREVER)
        assert made.metrics.read().waiting == len(made.batcher._queue) == 0
    assert model.sizes == []


def test_what_is_cancelled_leaves_the_queue_and_its_image_at_once() -> None:
    model = Model()
    with queue(model, limit=8) as made, busy(model, made):
        for _ in range(100):
            request = made.send(1)
            request._source = b"upload"
            assert request.cancel()
            assert request._pixels is None
            assert request._source is None
        assert len(made.batcher._queue) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["logits", "embedding"])
def test_values_that_are_no_numbers_fail_alone(value: float, kind: str) -> None:
    class Broken(Model):
        def run(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().run(images)
            changed = outputs._asdict()[kind].copy()
            changed[outputs.logits[:, 0] == 1] = value
            return outputs._replace(**{kind: changed})

    model = Broken()
    with queue(model) as made:
        with busy(model, made):
            requests = [made.send(value) for value in range(3)]
        with pytest.raises(RunError, match=r"the model gives values that are no finite numbers \(NaN or infinity\)"):
            requests[1].result(FOREVER)
        assert [requests[0].result(FOREVER), requests[2].result(FOREVER)] == [0, 2]
        assert made.metrics.read().not_finite == 1


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_threads_that_cannot_be_started_are_told_before_anything_is_accepted(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ResourcesExhausted, match=r"does not allow another thread \(can't start new thread\); send it"):
        Queue(Model(concurrency=2))
    for thread in started:
        thread.join(FOREVER)


def test_a_clock_that_cannot_be_started_is_told_before_anything_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with queue(Model()) as made:
        monkeypatch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(ResourcesExhausted, match="no thread"):
            made.send(1, timeout=1.0)
        assert made.lifecycle.open_requests == 0
        assert made.send(2).result(FOREVER) == 2


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


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError])
@pytest.mark.parametrize("models", [1, 2])
def test_a_worker_outlives_whatever_a_batch_raises(error: type[BaseException], models: int) -> None:
    replicas = [Model() for _ in range(models)]
    with queue(*replicas) as made:
        for model in replicas:
            model.error = error("at the worst moment")
        for value in range(5):
            with pytest.raises(
                RunError, match=r"the batch of this image failed .*at the worst moment.*; send it again"
            ):
                made.send(value).result(FOREVER)
        for model in replicas:
            model.error = None
        assert made.send(3).result(FOREVER) == 3
        assert all(thread.is_alive() for thread in made.batcher._threads)
        assert made.batcher.end == ""


def test_an_image_that_cannot_be_taken_from_the_queue_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    with queue(model) as made:
        begin = Request._begin
        failing = [MemoryError("no memory left")]

        def fail_once(request: Request) -> bool:
            if failing:
                raise failing.pop()
            return begin(request)

        monkeypatch.setattr(Request, "_begin", fail_once)
        with pytest.raises(RunError, match="no memory left"):
            made.send(1).result(FOREVER)
        assert made.send(2).result(FOREVER) == 2


def test_slow_answers_are_made_elsewhere() -> None:
    model, later = Model(), list[Callable[[], object]]()
    with queue(model) as made:
        made.batcher._elsewhere = later.append
        slow = Request(lambda answers, row: int(answers.logits[row, 0]), is_slow=True)
        made.batcher.accept([slow])
        made.batcher.put(slow, np.full((1, 1, 1), 7, np.uint8))
        assert made.send(8).result(FOREVER) == 8
        assert not slow.done()
        assert made.lifecycle.open_requests == 1
        (work,) = later
        work()
        assert slow.result(0) == 7
