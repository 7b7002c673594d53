"""Dynamic micro-batching: images that are submitted one by one run in batches.

A batch begins when it is full, or when the image that waits longest has waited for the allowed delay, and a model is
free. While the models are busy, images gather, so that batches grow with the load.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs, not_finite
from tnn_runtime.answers.results import Answers
from tnn_runtime.errors import (
    ClassifierClosed,
    DeadlineExceeded,
    DeviceLost,
    NotAnswered,
    QueueFull,
    ResourcesExhausted,
    RunError,
    TnnError,
)
from tnn_runtime.queue.callbacks import Callbacks
from tnn_runtime.queue.copies import own_copy
from tnn_runtime.queue.deadlines import Deadlines
from tnn_runtime.queue.failures import Failures
from tnn_runtime.queue.lifecycle import Lifecycle
from tnn_runtime.queue.metrics import Metrics
from tnn_runtime.queue.replicas import Replica, Replicas

__all__ = ["Batcher", "QueueOptions", "Request"]

_NEVER = float("inf")


@dataclass(frozen=True)
class QueueOptions:
    """How submitted images wait for each other.

    Args:
        max_batch_size: Images a batch, at most.
        max_delay_s: How long an image waits for others, in seconds, while a model is free.
        max_queue_size: Submitted images that may wait, those that are being decoded included.
    """

    max_batch_size: int
    max_delay_s: float
    max_queue_size: int


class Request(Future[Any]):
    """One submitted image on its way to its answer.

    Whoever submitted the image holds this very object: to them it is a plain future, so that all else is private to
    this module.

    Args:
        answer: Makes the answer from those of the batch and the row of this image.
        is_slow: Whether that takes so long that other batches should not wait for it.
        extra: The outputs beside logits and embedding that this takes.
        timeout_s: Seconds from now until the batch must have begun, or ``None``.
        link: An OpenTelemetry link to the span in which the image was submitted, or ``None``.
    """

    def __init__(
        self,
        answer: Callable[[Answers, int], Any],
        timeout_s: float | None = None,
        link: Any = None,
        *,
        is_slow: bool = False,
        extra: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._is_slow = is_slow
        self._extra = extra
        self._accepted = time.monotonic()
        self._link = link
        self._callbacks: Callbacks | None = None
        self._owner: object = None
        self._source: Any = None
        self._pixels: NDArray[np.uint8] | None = None
        self._ready = 0.0
        self._waits = True
        self._timeout_s = timeout_s
        self._deadline = _NEVER if timeout_s is None else self._accepted + timeout_s
        self._answer = answer

    def add_done_callback(self, callback: Callable[[Future[Any]], object]) -> None:
        """Let a callback run once this is done, with this future, in the one thread that the classifier has for it."""
        if self._callbacks is None:
            super().add_done_callback(callback)
        else:
            super().add_done_callback(partial(self._callbacks.run, callback))

    def _decode(self, decode: Callable[[Any], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the image as the model takes it, uint8 ``[height, width, channels]``."""
        return decode(self._source)

    def _due_after(self, max_delay_s: float) -> float:
        """Return the moment up to which it waits for others: at most half of the time that it had left."""
        return min(self._ready + max_delay_s, (self._ready + self._deadline) / 2)

    def _is_over(self) -> bool:
        """Return whether it needs no answer any more: it was cancelled, or its time is over, which ends it now."""
        if time.monotonic() >= self._deadline and not self.running():
            self._fail(
                DeadlineExceeded(
                    f"the batch of this image did not begin within its {self._timeout_s:g} s; send fewer images at a "
                    "time, or allow more time"
                )
            )
        return self.done()

    def _begin(self) -> bool:
        """Mark it as running, which cannot be cancelled; return False if it needs no answer any more."""
        return not self._is_over() and self.set_running_or_notify_cancel()

    def _succeed(self, answers: Answers, row: int) -> None:
        """Set its answer."""
        try:
            result = self._answer(answers, row)
        except BaseException as error:  # the answer to one image must not be the end of the others
            self._fail(error)
        else:
            self.set_result(result)

    def _fail(self, error: BaseException) -> None:
        """Set its error, unless it was answered or cancelled before."""
        if not isinstance(error, Exception):
            error = _failed(error)
        try:
            self.set_exception(error)
        except InvalidStateError:
            return


class Batcher:
    """The queue, and the threads that take batches from it: each replica has as many as keep its device busy.

    Args:
        replicas: The models.
        make_answers: Makes answers of the outputs for a batch.
        options: How images wait.
        lifecycle: Where requests are counted from acceptance to answer.
        metrics: Where everything is counted.
        failures: Where requests are counted that get no answer.
        elsewhere: Lets a function run soon in another thread; slow answers are made there.
    """

    def __init__(
        self,
        replicas: Replicas,
        make_answers: Callable[[Outputs], Answers],
        options: QueueOptions,
        lifecycle: Lifecycle,
        metrics: Metrics,
        failures: Failures,
        elsewhere: Callable[[Callable[[], object]], object],
    ) -> None:
        self._failures = failures
        self._elsewhere = elsewhere
        self._make_answers = make_answers
        self._options = options
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._queue: OrderedDict[Request, None] = OrderedDict()
        self._due = _NEVER
        self._waiting = 0
        self._end: NotAnswered | None = None
        self._changed = threading.Condition()
        self._forming = threading.Lock()
        self._process = os.getpid()
        self._callbacks = Callbacks()
        self._deadlines = Deadlines(self._expire)
        self._threads = [
            threading.Thread(target=self._work, args=(replica,), name=f"tnn-{replica.backend.device}", daemon=True)
            for replica in replicas
            for _ in range(replica.backend.concurrency)
        ]
        self._workers = len(self._threads)
        self._replicas = replicas
        try:
            self._callbacks.start()
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self.close()
            raise _no_thread(error) from error

    @property
    def end(self) -> str:
        """Why no batch runs any more; empty while they do."""
        return str(self._end or "")

    def accept(self, requests: Sequence[Request]) -> None:
        """Accept requests, all or none; each must then be given to `put` or `prepare`.

        Raises:
            QueueFull: If there is no room for all of them.
            ResourcesExhausted: If there are deadlines, and the system does not allow a thread that keeps them.
            DeviceLost: If there is no device left.
            ClassifierClosed: If nothing is accepted any more.
        """
        self._lifecycle.check()
        dated = [request for request in requests if request._deadline < _NEVER]
        if dated:
            try:
                self._deadlines.start()
            except RuntimeError as error:
                raise _no_thread(error) from error
        with self._changed:
            if self._end is not None:
                raise own_copy(self._end)
            if self._waiting + len(requests) > self._options.max_queue_size:
                raise QueueFull(
                    f"{self._waiting} images wait, and {len(requests)} more would be over the limit of "
                    f"{self._options.max_queue_size}; send them later, or raise max_queue_size"
                )
            self._lifecycle.accept(len(requests))
            self._waiting += len(requests)
        self._metrics.waiting(len(requests))
        for request in requests:
            request._callbacks = self._callbacks
            Future.add_done_callback(request, self._answered)
        for request in dated:
            self._deadlines.add(request, request._deadline)

    def prepare(self, request: Request, decode: Callable[[], NDArray[np.uint8]]) -> None:
        """Decode the image of an accepted request, unless it needs no answer any more, and let it wait for its batch.

        Args:
            request: The request, which gets the error if there is one.
            decode: Returns its image, uint8 ``[height, width, channels]``.
        """
        if self._end is not None:
            request._fail(own_copy(self._end))
        elif not request._is_over():
            try:
                pixels = decode()
            except BaseException as error:
                request._fail(error)
            else:
                self.put(request, pixels)

    def put(self, request: Request, pixels: NDArray[np.uint8]) -> None:
        """Let an accepted request wait for its batch.

        Args:
            request: The request.
            pixels: Its image, uint8 ``[height, width, channels]``, which nobody changes any more.
        """
        request._pixels = pixels
        request._ready = time.monotonic()
        due = request._due_after(self._options.max_delay_s)
        with self._changed:
            end = self._end
            if end is None and not request.done():
                self._queue[request] = None
                # Whoever forms a batch need not be woken for an image that changes nothing for it.
                if len(self._queue) in (1, self._options.max_batch_size) or due < self._due:
                    self._changed.notify()
                self._due = min(self._due, due)
        if end is not None:
            request._fail(own_copy(end))

    def close(self) -> None:
        """End the threads; batches that run are answered, and images that still wait get `ClassifierClosed`.

        May be called in any thread, also in a callback of a future, and by whoever lets go of a classifier last.
        """
        if os.getpid() != self._process:
            return
        self._stop(ClassifierClosed("this classifier was closed while the image waited; drain it before you close it"))
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
        self._deadlines.close()
        self._lifecycle.wait()
        self._callbacks.close()

    def _stop(self, end: NotAnswered) -> None:
        """Take no more images, and fail those that wait."""
        with self._changed:
            self._end = self._end or end
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for request in waiting:
            request._fail(own_copy(end))

    def _answered(self, request: Future[Any]) -> None:
        """Count a request that has its answer, whatever it is, and forget its image."""
        assert isinstance(request, Request)
        request._pixels = request._source = None
        if request.cancelled():
            self._failures.cancelled()
        elif error := request.exception():
            self._failures.add(error)
        else:
            self._metrics.answered(time.monotonic() - request._accepted)
        self._leave(request)
        self._lifecycle.answered()
        request._owner = None  # which may be the last hold on the classifier

    def _expire(self, request: Request) -> None:
        """End a request whose time is over, unless its batch has begun."""
        with self._changed:
            request._is_over()

    def _leave(self, request: Request) -> None:
        """Count a request that no longer waits: its batch begins, or it is answered without one."""
        with self._changed:
            waits, request._waits = request._waits, False
            self._waiting -= waits
            self._queue.pop(request, None)
        if waits:
            self._metrics.waiting(-1)

    def _work(self, replica: Replica) -> None:
        batch: list[Request] = []
        while replica.lost is None:
            try:
                self._take(batch)
                if not batch:
                    break
                self._run(replica, batch)
            except BaseException as error:  # whatever it is, this batch is answered, and the next one runs
                self._failures.log.warning(
                    "batch", "a batch of %d images failed on %s", len(batch), replica.backend.device, error=error
                )
                for request in batch:
                    request._fail(_failed(error))
            batch.clear()
        with self._changed:
            self._workers -= 1
            is_last = self._workers == 0
        if is_last:
            self._stop(self._end or replica.lost or ClassifierClosed("no thread runs batches any more"))

    def _take(self, batch: list[Request]) -> None:
        """Fill an empty list with the next batch; leave it empty at the end."""
        with self._forming:
            while not batch:
                with self._changed:
                    self._wait_for_a_batch()
                    if self._end is not None:
                        return
                    for _ in range(min(len(self._queue), self._options.max_batch_size)):
                        request = next(iter(self._queue))
                        batch.append(request)
                        del self._queue[request]
                        if request._begin():
                            self._leave(request)
                        else:
                            batch.pop()
                    self._due = self._earliest_due()

    def _earliest_due(self) -> float:
        return min((request._due_after(self._options.max_delay_s) for request in self._queue), default=_NEVER)

    def _wait_for_a_batch(self) -> None:
        while self._end is None:
            if not self._queue:
                self._changed.wait()
            elif len(self._queue) >= self._options.max_batch_size:
                return
            elif (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            elif (due := self._earliest_due()) > self._due:  # what was due has been answered otherwise
                self._due = due
            else:
                return

    def _run(self, replica: Replica, batch: list[Request]) -> None:
        now = time.monotonic()
        self._metrics.waited([now - request._ready for request in batch])
        links = [request._link for request in batch if request._link is not None]
        try:
            images = np.stack([request._pixels for request in batch if request._pixels is not None])
            extra = tuple(dict.fromkeys(name for request in batch for name in request._extra))
            answers = self._make_answers(self._outputs(replica, images, links, extra))
        except TnnError as error:
            self._failures.log.warning(
                "batch", "a batch of %d images failed on %s: %s", len(batch), replica.backend.device, error
            )
            for request in batch:
                request._fail(own_copy(error))
            return
        bad = set(answers.outputs.bad_rows.tolist())
        if bad:
            self._metrics.not_finite(len(bad))
        for row, request in enumerate(batch):
            if row in bad:
                request._fail(not_finite())
            elif request._is_slow:
                self._elsewhere(partial(request._succeed, answers.only(row), 0))
            else:
                request._succeed(answers, row)

    def _outputs(
        self, replica: Replica, images: NDArray[np.uint8], links: Sequence[Any], extra: tuple[str, ...]
    ) -> Outputs:
        """Run a batch on a replica, or on another one if its device is lost."""
        try:
            return replica.run(images, links, extra)
        except DeviceLost:
            return self._replicas.run(images, links, extra)


def _failed(error: BaseException) -> RunError:
    told = RunError(f"the batch of this image failed ({type(error).__name__}: {error}); send it again")
    told.__cause__ = error
    return told


def _no_thread(error: RuntimeError) -> ResourcesExhausted:
    return ResourcesExhausted(
        f"the system does not allow another thread ({error}); send it later, or raise the limit of processes (ulimit "
        "-u, or pids of the container)"
    )
