"""What a classifier counts while it serves."""

from __future__ import annotations

import operator
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

__all__ = ["Distribution", "Metrics", "MetricsSnapshot"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Distribution:
    """A histogram of what was observed.

    Args:
        bounds: Upper bounds of the buckets, inclusive, ascending; a last bucket without a bound follows.
        counts: How many observations fell into each bucket, one more than there are bounds.
        total: The sum of all observations.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean, 0 if there were none."""
        return self.total / self.count if self.count else 0.0

    def __truediv__(self, divisor: float) -> Distribution:
        """Return the histogram of the same observations, each divided by a number."""
        return Distribution(tuple(bound / divisor for bound in self.bounds), self.counts, self.total / divisor)

    def __add__(self, other: Distribution) -> Distribution:
        """Return the histogram of what either has observed; their bounds must be the same."""
        counts = tuple(map(operator.add, self.counts, other.counts))
        return Distribution(self.bounds, counts, self.total + other.total)


_NONE = Distribution((), (0,), 0.0)


@dataclass(frozen=True)
class MetricsSnapshot:
    """The counters of a classifier at one moment.

    A request is one call of ``predict``, ``logits``, ``embed``, ``explain`` or ``reject_scores``, or one image that was
    submitted, by `Classifier.submit` or by one of the methods for asyncio.

    Durations are in seconds.

    Args:
        requests: Requests that came in, those that were refused included.
        images: Images that the model was run on, without those that fill up a batch.
        failures: Requests that got no answer, by the name of the error; ``"Cancelled"`` for those that were cancelled.
        queue_seconds: How long submitted images waited for their batch, decoded.
        batch_sizes: Images a run of the model.
        inference_seconds: Duration of each run of the model, with the copies to the device and back.
        waiting: Submitted images that wait for their batch now.
        running: Runs of the model now.
        not_finite: Images for which the model gave values that are no finite numbers.
        rejected: Images that were rejected, as the caller asked for.
        request_seconds: How long each request took from the call to its answer, without those that got none.
        decode_seconds: How long decoding and scaling took for each image.
        batch_fill: For each run of the model, its images divided by the largest batch, 0 to 1.
        decoding: Images that are decoded, or wait for that, now.
        version: The first 12 digits of the digest of the bundle.
    """

    requests: int
    images: int
    failures: dict[str, int]
    queue_seconds: Distribution
    batch_sizes: Distribution
    inference_seconds: Distribution
    waiting: int
    running: int
    not_finite: int = 0
    rejected: int = 0
    request_seconds: Distribution = _NONE
    decode_seconds: Distribution = _NONE
    batch_fill: Distribution = _NONE
    decoding: int = 0
    version: str = ""

    def __add__(self, other: MetricsSnapshot) -> MetricsSnapshot:
        """Return what both have counted together, under the version of this one."""
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("failures", "version")
        }
        failures = dict(Counter(self.failures) + Counter(other.failures))
        return MetricsSnapshot(**sums, failures=failures, version=self.version)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Metrics:
    """The counters themselves; every method may be called from any thread.

    Args:
        max_batch_size: Images a batch, at most.
        version: What stands for the bundle in monitoring systems.
    """

    def __init__(self, max_batch_size: int = 1, version: str = "") -> None:
        self._max_batch_size = max_batch_size
        self._version = version
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start again from 0."""
        self._requests = self._images = self._waiting = self._running = self._decoding = 0
        self._not_finite = self._rejected = 0
        self._failures: Counter[str] = Counter()
        self._queue = _Histogram(_SECONDS)
        self._batches = _Histogram(_SIZES)
        self._inference = _Histogram(_SECONDS)
        self._decode = _Histogram(_SECONDS)
        self._answers = _Histogram(_SECONDS)

    def request(self, count: int = 1) -> None:
        """Count requests that come in."""
        with self._lock:
            self._requests += count

    def failed(self, reason: str, count: int = 1) -> None:
        """Count requests that get no answer."""
        with self._lock:
            self._failures[reason] += count

    def answered(self, seconds: float) -> None:
        """Record how long a request took that got its answer."""
        with self._lock:
            self._answers.observe(seconds)

    def rejected(self) -> None:
        """Count an image that was rejected."""
        with self._lock:
            self._rejected += 1

    def decoding(self, change: int) -> None:
        """Count images that begin to wait for being decoded, or are decoded or given up."""
        with self._lock:
            self._decoding += change

    def decoded(self, seconds: float) -> None:
        """Record how long decoding an image took."""
        with self._lock:
            self._decode.observe(seconds)

    def not_finite(self, count: int) -> None:
        """Count images for which the model gave values that are no finite numbers."""
        with self._lock:
            self._not_finite += count

    def waiting(self, change: int) -> None:
        """Count images that begin or cease to wait for their batch."""
        with self._lock:
            self._waiting += change

    def waited(self, seconds: Sequence[float]) -> None:
        """Record how long each image of a batch has waited for it."""
        with self._lock:
            for value in seconds:
                self._queue.observe(value)

    def run_begins(self) -> None:
        """Count a run of the model that begins."""
        with self._lock:
            self._running += 1

    def run_ends(self, images: int, seconds: float) -> None:
        """Record a run of the model that has ended, with an answer or without."""
        with self._lock:
            self._running -= 1
            self._images += images
            self._batches.observe(images)
            self._inference.observe(seconds)

    def read(self) -> MetricsSnapshot:
        """Return all counters, as they are at one moment."""
        with self._lock:
            return MetricsSnapshot(
                requests=self._requests,
                images=self._images,
                failures=dict(self._failures),
                queue_seconds=self._queue.read(),
                batch_sizes=self._batches.read(),
                inference_seconds=self._inference.read(),
                waiting=self._waiting,
                running=self._running,
                not_finite=self._not_finite,
                rejected=self._rejected,
                request_seconds=self._answers.read(),
                decode_seconds=self._decode.read(),
                batch_fill=self._batches.read() / self._max_batch_size,
                decoding=self._decoding,
                version=self._version,
            )
