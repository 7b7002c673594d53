"""A classifier in a service: the queue, asyncio, health, drain and close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from waiting import FOREVER, Clock, until

from tnn_runtime import (
    Classifier,
    ClassifierClosed,
    DeadlineExceeded,
    DeviceLost,
    InputError,
    Prediction,
    QueueFull,
    UsageError,
)
from tnn_runtime.bulk import classify_files
from tnn_runtime.images.folders import find_images
from tnn_runtime.queue import batching
from tnn_train import ImageData


@pytest.fixture
def classifier(bundles: dict[str, Path]) -> Iterator[Classifier]:
    with Classifier.load(bundles["tversky"], "cpu", threads=1) as loaded:
        yield loaded
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tnn-")]


def hold(classifier: Classifier, monkeypatch: pytest.MonkeyPatch, released: Callable[[], object]) -> None:
    """Let the model wait, in each of its runs, until something can be seen."""
    (replica,) = classifier._replicas
    run = replica.backend.run

    def held(images: object) -> object:
        until(released)
        return run(images)  # type: ignore[arg-type]

    monkeypatch.setattr(replica.backend, "run", held)


def test_loading_is_logged(small_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tnn_runtime"), Classifier.load(small_bundle, "cpu"):
        assert f"{small_bundle} runs on cpu: as asked" in caplog.text


def test_submitted_images_get_what_predict_returns(classifier: Classifier, data: ImageData) -> None:
    sources = data.test.sources
    images = [*sources, sources[0].read_bytes(), Image.open(sources[1]), np.asarray(Image.open(sources[2]))]
    expected = classifier.predict(images, top_k=2)
    futures = [classifier.submit(image, top_k=2) for image in images]
    for future, ranked in zip(futures, expected, strict=True):
        found = future.result(FOREVER)
        assert [prediction.label for prediction in found] == [prediction.label for prediction in ranked]
        assert found[0].score == pytest.approx(ranked[0].score, rel=1e-5)


def test_asyncio_gets_what_the_others_get(classifier: Classifier, data: ImageData) -> None:
    pixels, files = data.test.pixels, data.test.sources

    async def ask() -> None:
        ranked = await classifier.predict_async(files, top_k=1)
        assert [best.index for best, *_ in ranked] == [best.index for best, *_ in classifier.predict(files, top_k=1)]
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(await classifier.logits_async(pixels), classifier.logits(pixels), **close)
        np.testing.assert_allclose(await classifier.embed_async(pixels), classifier.embed(pixels), **close)
        ((found, *_),) = await classifier.explain_async(files[:1])
        ((expected, *_),) = classifier.explain(files[:1])
        assert (found.label, found.logit) == (expected.label, pytest.approx(expected.logit, rel=1e-4, abs=1e-5))
        assert (await classifier.logits_async([])).shape == (0, 2)
        assert (await classifier.embed_async([])).shape == (0, 24)
        assert await classifier.predict_async([]) == []

    asyncio.run(ask())


def test_an_array_may_be_changed_after_it_was_submitted(bundles: dict[str, Path], data: ImageData) -> None:
    options = {"max_queue_delay_ms": 3_600_000, "max_batch_size": 2}
    with Classifier.load(bundles["tversky"], "cpu", **options) as classifier:
        for array in (data.test.pixels[0].copy(), np.asarray(Image.open(data.test.sources[0])).copy()):
            expected = classifier.predict([array], top_k=1)[0][0]
            future = classifier.submit(array, top_k=1)
            array[:] = 0
            classifier.submit(array)
            assert future.result(FOREVER)[0].score == pytest.approx(expected.score, rel=1e-5)


def test_a_bad_image_fails_alone(classifier: Classifier, data: ImageData) -> None:
    good, bad = classifier.submit(data.test.sources[0]), classifier.submit("nothing.png")
    with pytest.raises(InputError, match=r"nothing.png does not exist"):
        bad.result(FOREVER)
    assert len(good.result(FOREVER)) == 2
    with pytest.raises(InputError, match="images\\[1\\]: the image is not an image that can be read"):
        classifier.predict([data.test.sources[0], b"no image"])
    with pytest.raises(InputError, match="nothing.png does not exist"):
        asyncio.run(classifier.predict_async([data.test.sources[0], "nothing.png"]))
    assert classifier.drain(FOREVER)
    assert classifier.metrics.failures["InputError"] == 3


def test_a_cancelled_task_cancels_its_images(bundles: dict[str, Path], data: ImageData) -> None:
    async def give_up(classifier: Classifier) -> None:
        task = asyncio.create_task(classifier.predict_async(data.test.pixels))
        await asyncio.sleep(0)  # lets the task run up to where it waits
        assert classifier.health.waiting == len(data.test.pixels)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Classifier.load(bundles["tversky"], "cpu", max_queue_delay_ms=3_600_000) as classifier:
        asyncio.run(give_up(classifier))
        assert classifier.metrics.failures == {"Cancelled": len(data.test.pixels)}
        assert classifier.health.waiting == 0


def test_limits_of_the_queue(bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    image, images = data.test.pixels[0], data.test.pixels
    options = {"max_queue_delay_ms": 3_600_000, "max_queue_size": 3, "timeout_s": 1}
    clock = Clock(monkeypatch, batching)
    with Classifier.load(bundles["tversky"], "cpu", **options) as classifier:
        futures = [classifier.submit(image, timeout_s=3600) for _ in range(3)]
        with pytest.raises(QueueFull, match="3 images wait, and 1 more would be over the limit of 3"):
            classifier.submit(image)
        with pytest.raises(QueueFull, match="3 images wait, and 2 more"):
            asyncio.run(classifier.predict_async(images[:2]))
        assert classifier.health.waiting == 3
        futures[0].cancel()
        late = classifier.submit(image)
        assert clock.advance(2.0) == 0.5
        with pytest.raises(DeadlineExceeded, match="did not begin within its 1 s"):
            late.result(FOREVER)
        assert [len(future.result(FOREVER)) for future in futures[1:]] == [2, 2]
        assert classifier.metrics.failures["QueueFull"] == 3


def test_more_images_than_the_queue_holds_are_sent_in_pieces(bundles: dict[str, Path], data: ImageData) -> None:
    images = data.test.pixels
    with Classifier.load(bundles["tversky"], "cpu", max_queue_size=3) as classifier:
        expected = classifier.logits(images)
        np.testing.assert_allclose(asyncio.run(classifier.logits_async(images)), expected, rtol=1e-4, atol=1e-4)
        assert len(asyncio.run(classifier.predict_async(list(images)))) == len(images)
        assert classifier.metrics.failures == {}


def test_files_in_bulk_wait_for_room_and_have_no_deadlines(
    bundles: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_images(photos)
    with Classifier.load(bundles["tversky"], "cpu", max_queue_size=4, timeout_s=1e-6) as classifier:
        foreign = iter([QueueFull("others wait"), QueueFull("others wait")])
        submit = classifier.submit

        def crowded(*arguments: Any, **options: Any) -> Any:
            if (error := next(foreign, None)) is not None:
                raise error
            return submit(*arguments, **options)

        monkeypatch.setattr(classifier, "submit", crowded)
        found = list(classify_files(classifier, files))
        assert [one.path for one in found] == files
        assert not any(one.error for one in found)


def test_a_stream_that_is_left_cancels_what_it_has_sent(
    bundles: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    with Classifier.load(bundles["tversky"], "cpu", max_batch_size=1) as classifier:
        hold(classifier, monkeypatch, go.is_set)
        sent: list[Any] = []
        submit = classifier.submit
        monkeypatch.setattr(classifier, "submit", lambda *a, **o: sent.append(submit(*a, **o)) or sent[-1])
        stream = classify_files(classifier, find_images(photos))
        threading.Timer(0.05, go.set).start()
        next(stream)
        stream.close()
        assert classifier.drain(FOREVER)
        assert all(future.done() for future in sent)


def test_the_answer_of_a_classifier_that_nobody_holds(bundles: dict[str, Path], photos: Path) -> None:
    (image, *_) = find_images(photos)
    assert Classifier.load(bundles["tversky"], "cpu").submit(image).result(FOREVER)


@pytest.mark.parametrize("timeout", [np.float32(60), np.float64(60), np.int64(60), Fraction(60), 60, math.inf])
def test_any_number_is_a_timeout(timeout: Any, classifier: Classifier, data: ImageData) -> None:
    assert classifier.submit(data.test.sources[0], timeout_s=timeout).result(FOREVER)


def test_what_is_explained_is_a_request_until_it_is_answered(
    classifier: Classifier, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        opened.append(classifier.health.open_requests)
        raise ZeroDivisionError("a bug")

    opened: list[int] = []
    before = classifier.metrics.failures.get("ZeroDivisionError", 0)
    monkeypatch.setattr(classifier._replies, "_explainer", fail)
    with pytest.raises(ZeroDivisionError):
        classifier.explain(data.test.sources[:1])
    with pytest.raises(ZeroDivisionError):
        asyncio.run(classifier.explain_async(data.test.sources[:1]))
    assert opened == [1, 1]
    assert classifier.metrics.failures["ZeroDivisionError"] == before + 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("state", ["idle", "busy", "locked", "closed"])
def test_a_fork_is_told_at_once(state: str, bundles: dict[str, Path], data: ImageData) -> None:
    image = data.test.sources[0]
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        classifier.submit(image).result(FOREVER)
        if state == "closed":
            classifier.close()
        locks = [classifier._metrics._lock, classifier._lifecycle._lock, classifier._making]
        with contextlib.ExitStack() as stack:
            if state == "locked":
                for lock in locks:
                    stack.enter_context(lock)
            futures = [classifier.submit(image) for _ in range(50)] if state == "busy" else []
            child = os.fork()
            if child == 0:
                os._exit(_in_fork(classifier, image))
        end = time.monotonic() + FOREVER
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.01)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
        assert ended == (child, 0)
        assert all(future.result(FOREVER) for future in futures)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_thousand_forks_of_a_busy_process_are_told(bundles: dict[str, Path], data: ImageData) -> None:
    image, stop = data.test.sources[0], threading.Event()
    with Classifier.load(bundles["tversky"], "cpu") as classifier:

        def ask() -> None:
            while not stop.is_set():
                with contextlib.suppress(QueueFull, DeadlineExceeded):
                    classifier.predict([image])
                    classifier.submit(image, timeout_s=0.01).result(FOREVER)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(1000):
            child = os.fork()
            if child == 0:
                signal.alarm(FOREVER)
                os._exit(_in_fork(classifier, image))
            codes.append(os.waitpid(child, 0)[1])
        stop.set()
        for thread in threads:
            thread.join(FOREVER)
    assert codes == [0] * 1000


def _in_fork(classifier: Classifier, image: Any) -> int:
    """Return how many calls in a fork do something else than they should."""
    calls: list[Callable[[], object]] = [
        lambda: classifier.predict([image]),
        lambda: classifier.submit(image),
        lambda: asyncio.run(classifier.predict_async([image])),
        lambda: classifier.explain([image]),
        lambda: classifier.drain(),
        lambda: classifier.metrics,
    ]
    wrong = 0
    for call in calls:
        try:
            call()
        except ClassifierClosed:
            continue
        wrong += 1
    classifier.close()
    return wrong + classifier.health.ready


def test_draining_answers_what_was_accepted_and_takes_nothing_new(
    bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        hold(classifier, monkeypatch, go.is_set)
        assert classifier.health.ready
        futures = [classifier.submit(image) for image in data.test.sources]
        assert not classifier.drain(timeout_s=0)
        assert not classifier.health.ready
        assert "drains" in classifier.health.reason
        for call in (classifier.submit, lambda image: classifier.predict([image])):
            with pytest.raises(
                ClassifierClosed, match="drains: it answers what it has accepted, and takes nothing new"
            ):
                call(data.test.sources[0])
        go.set()
        assert classifier.drain(timeout_s=FOREVER)
        assert all(future.done() and not future.exception() for future in futures)
    assert classifier.health.reason == "this classifier is closed; load the bundle again"
    with pytest.raises(ClassifierClosed, match="is closed"):
        classifier.submit(data.test.sources[0])
    assert classifier.drain(0)
    with pytest.raises(UsageError, match="timeout_s is -1; expected a number of seconds, 0 or more"):
        classifier.drain(-1)


def test_leaving_the_context_answers_and_an_error_does_not_wait(
    bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(bundles["tversky"], "cpu", max_batch_size=1) as classifier:
        futures: list[Future[list[Prediction]]] = []
        hold(
            classifier,
            monkeypatch,
            lambda: "drains" in classifier.health.reason or any(future.done() for future in futures),
        )
        for image in data.test.pixels[:2]:
            futures.append(classifier.submit(image))
    assert [len(future.result(0)) for future in futures] == [2, 2]
    classifier = Classifier.load(bundles["tversky"], "cpu", max_queue_delay_ms=3_600_000)
    future = classifier.submit(data.test.pixels[0])
    with pytest.raises(ZeroDivisionError), classifier:
        _ = 1 / 0
    assert isinstance(future.exception(0), ClassifierClosed)


def test_a_forgotten_classifier_leaves_no_thread(bundles: dict[str, Path], data: ImageData) -> None:
    classifier = Classifier.load(bundles["tversky"], "cpu")
    classifier.submit(data.test.pixels[0]).result(FOREVER)
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("tnn-"))
    assert names == ["tnn-callbacks", "tnn-cpu"]
    del classifier
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tnn-")]


def test_a_classifier_that_is_forgotten_in_a_callback_leaves_no_thread(
    bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, holder = threading.Event(), [Classifier.load(bundles["tversky"], "cpu")]
    hold(holder[0], monkeypatch, go.is_set)
    future = holder[0].submit(data.test.pixels[0])
    future.add_done_callback(lambda future: holder.clear())
    go.set()
    assert len(future.result(FOREVER)) == 2
    for thread in threading.enumerate():
        if thread.name.startswith("tnn-"):
            thread.join(FOREVER)
            assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_says_that_it_has_no_threads(classifier: Classifier, data: ImageData) -> None:
    image = data.test.pixels[0]
    classifier.submit(image).result(FOREVER)
    context = multiprocessing.get_context("fork")
    messages = context.SimpleQueue()

    def ask() -> None:
        for call in (classifier.submit, lambda image: classifier.logits(image[None])):
            try:
                call(image)
            except ClassifierClosed as error:
                messages.put(str(error))

    process = context.Process(target=ask)
    process.start()
    for _ in range(2):
        assert "a fork of it, where its threads are missing; load the bundle after the fork" in messages.get()
    process.kill()
    process.join()


def test_a_lost_device_ends_readiness_for_good(
    classifier: Classifier, data: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    (replica,) = classifier._replicas
    run = replica.backend.run

    def lose(images: object) -> None:
        raise DeviceLost("cuda:0 is lost (cudaErrorIllegalAddress); restart this process")

    replica.backend.run = lose  # type: ignore[assignment, method-assign]
    with pytest.raises(DeviceLost):
        classifier.submit(data.test.pixels[0]).result(FOREVER)
    replica.backend.run = run  # type: ignore[method-assign]
    until(lambda: "tnn-cpu" not in [thread.name for thread in threading.enumerate()])
    assert "cpu is lost: cuda:0 is lost (cudaErrorIllegalAddress)" in caplog.text
    assert not classifier.health.ready
    assert "cudaErrorIllegalAddress" in classifier.health.reason
    for call in (classifier.submit, lambda image: classifier.logits(image[None])):
        with pytest.raises(DeviceLost, match="restart this process"):
            call(data.test.pixels[0])
    assert not classifier.health.ready


def test_replicas_share_the_work_and_the_cores(bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles["tversky"], ["cpu", "cpu"], max_batch_size=1, threads=1) as classifier:
        assert classifier.info["device"] == "cpu, cpu"
        expected = classifier.predict(data.test.pixels, top_k=1)
        futures = [classifier.submit(image, top_k=1) for image in data.test.pixels for _ in range(20)]
        for number, future in enumerate(futures):
            assert future.result(FOREVER)[0].index == expected[number // 20][0].index
    for devices in ([], ["auto", "cpu"]):
        with pytest.raises(UsageError, match="expected a device, or a list of devices without 'auto'"):
            Classifier.load(bundles["tversky"], devices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue_delay_ms": -1}, "max_queue_delay_ms is -1; expected a number of milliseconds, 0 or more"),
        ({"max_queue_delay_ms": True}, "max_queue_delay_ms is True"),
        ({"max_queue_size": 0}, "max_queue_size is 0; expected an integer of at least 1"),
        ({"timeout_s": float("nan")}, "timeout_s is nan; expected a number of seconds"),
        ({"timeout_s": "1"}, "timeout_s is '1'"),
    ],
)
def test_options_out_of_range(small_bundle: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Classifier.load(small_bundle, "cpu", **options)


def test_spans_are_made_and_linked_to_those_of_their_requests(bundles: dict[str, Path], data: ImageData) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("service")
    with Classifier.load(bundles["tversky"], "cpu", tracer=tracer) as classifier:
        assert not spans.get_finished_spans() or classifier is not None
        spans.clear()
        with tracer.start_as_current_span("request"):
            classifier.predict(data.test.sources[:2])
            classifier.submit(data.test.sources[0]).result(FOREVER)
        classifier.submit(data.test.sources[0]).result(FOREVER)
    direct, batch, request, unlinked = spans.get_finished_spans()
    assert [span.name for span in (direct, batch, unlinked)] == ["tnn_runtime.run"] * 3
    assert direct.attributes == {"tnn.device": "cpu", "tnn.images": 2, "tnn.batch_size": 2}
    assert direct.parent == request.context
    assert [link.context for link in batch.links] == [request.context]
    assert batch.parent is None
    assert not unlinked.links


def test_calls_wait_for_each_other_where_their_number_is_limited(
    bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = data.test.pixels[:1]
    with Classifier.load(bundles["tversky"], "cpu", max_concurrent_calls=2) as classifier:
        assert classifier.info["max_concurrent_calls"] == 2
        go = threading.Event()
        hold(classifier, monkeypatch, go.is_set)
        calls = [classifier.predict, classifier.logits, classifier.embed, classifier.explain, classifier.reject_scores]
        threads = [threading.Thread(target=call, args=(image,)) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: classifier.metrics.running == 2 and classifier.health.open_requests == len(calls))
        assert classifier.metrics.images == 0
        go.set()
        for thread in threads:
            thread.join(FOREVER)
        assert classifier.metrics.images == classifier.metrics.request_seconds.count == len(calls)


def test_a_call_waits_no_longer_than_it_may(
    bundles: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = data.test.pixels[:1]
    with Classifier.load(bundles["tversky"], "cpu", max_concurrent_calls=1, timeout_s=0.05) as classifier:
        go = threading.Event()
        hold(classifier, monkeypatch, go.is_set)
        thread = threading.Thread(target=classifier.predict, args=(image,))
        thread.start()
        until(lambda: classifier.metrics.running == 1)
        with pytest.raises(DeadlineExceeded, match=r"1 calls ran for the 0.05 s that this one could wait; make fewer"):
            classifier.predict(image)
        with pytest.raises(DeadlineExceeded):
            classifier.predict(["nothing.png"])
        go.set()
        thread.join(FOREVER)
        with pytest.raises(InputError):
            classifier.predict(["nothing.png"])
        assert classifier.predict(image), "a call that failed has given its place back"
        assert classifier.metrics.failures == {"DeadlineExceeded": 2, "InputError": 1}
