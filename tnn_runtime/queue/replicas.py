"""The copies of a model that serve together, one for each device that was asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.backends import Backend
from tnn_runtime.backends.batches import fill_up
from tnn_runtime.errors import DeviceLost
from tnn_runtime.queue.copies import own_copy
from tnn_runtime.queue.metrics import Metrics

__all__ = ["Replica", "Replicas"]

_LOG = logging.getLogger(__name__)


class Replica:
    """A model on one device: fills batches up to the sizes it takes, measures, and remembers the loss of its device.

    Args:
        backend: The loaded model.
        smallest: The smallest batch that the graph takes.
        reason: Why it runs where it runs.
        metrics: Where each run is counted.
        tracer: An OpenTelemetry tracer that makes a span of each run, or ``None``.
    """

    def __init__(self, backend: Backend, smallest: int, reason: str, metrics: Metrics, tracer: Any = None) -> None:
        self.backend = backend
        self.reason = reason
        self.running = 0
        self.lost: DeviceLost | None = None
        self._smallest = smallest
        self._fills = smallest > 1 or bool(backend.batch_sizes)
        # Whoever waits for one of the slots of a GPU waits here, before the time of the run is taken.
        slots = threading.BoundedSemaphore(backend.concurrency) if backend.batch_sizes else nullcontext()
        self._slots: AbstractContextManager[object] = slots
        self._metrics = metrics
        self._tracer = tracer

    def run(self, images: NDArray[np.uint8], links: Sequence[Any] = (), extra: tuple[str, ...] = ()) -> Outputs:
        """Return the outputs for uint8 images ``[N, H, W, C]``, N from 1 to the largest batch.

        Args:
            images: The images.
            links: OpenTelemetry links to the spans in which they were submitted.
            extra: As for `Backend.run`.

        Raises:
            RunError: If the model fails on this batch.
            DeviceLost: If the device has failed, now or before.
        """
        count = len(images)
        filled = fill_up(images, self.backend.batch_sizes, self._smallest) if self._fills else images
        with self._slots:
            if self.lost is not None:
                raise own_copy(self.lost)
            run = partial(self.backend.run, extra=extra) if extra else self.backend.run
            started = time.perf_counter()
            self._metrics.run_begins()
            try:
                if self._tracer is None:
                    outputs = run(filled)
                else:
                    with self._span(count, len(filled), links):
                        outputs = run(filled)
            except DeviceLost as error:
                self.lost = error
                _LOG.error("%s is lost: %s", self.backend.device, error)
                raise
            finally:
                self._metrics.run_ends(count, time.perf_counter() - started)
        return outputs if len(filled) == count else outputs.rows(slice(count))

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits alone, as `run`."""
        return self.run(images).logits

    def warm_up(self) -> None:
        """Run what first runs are slow for; see `Backend.warm_up`."""
        self.backend.warm_up()

    def _span(self, count: int, size: int, links: Sequence[Any]) -> Any:
        attributes = {"tnn.device": self.backend.device, "tnn.images": count, "tnn.batch_size": size}
        return self._tracer.start_as_current_span("tnn_runtime.run", attributes=attributes, links=list(links))


class Replicas:
    """Shares calls out among replicas: each goes to the one with the fewest running calls."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    @property
    def lost(self) -> list[DeviceLost]:
        """The errors of the devices that were lost."""
        return [replica.lost for replica in self._replicas if replica.lost is not None]

    def run(self, images: NDArray[np.uint8], links: Sequence[Any] = (), extra: tuple[str, ...] = ()) -> Outputs:
        """Run a batch on the replica that has the least to do, and on another one if its device is lost.

        Arguments and errors are those of `Replica.run`; `DeviceLost` if there is no device left.
        """
        if len(self._replicas) == 1:
            return self._replicas[0].run(images, links, extra)
        while True:
            with self._lock:
                replica = min(self._replicas, key=lambda replica: (replica.lost is not None, replica.running))
                replica.running += 1
            is_last = replica.lost is not None
            try:
                return replica.run(images, links, extra)
            except DeviceLost:
                if is_last:
                    raise
            finally:
                with self._lock:
                    replica.running -= 1

    def close(self) -> None:
        """Release all models."""
        for replica in self._replicas:
            replica.backend.close()
