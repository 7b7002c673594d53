"""How late deadlines are kept while the model is busy and the queue is full of other images.

    python examples/benchmark_deadlines.py runs/demo/bundle-tversky --images 200

So many others wait that no image with a deadline is reached in time, files are decoded all the while, and images with
deadlines of 10 ms to 1 s are submitted at random moments. Measured is the time from the deadline to the callback of the
future. The control is a thread that sleeps as long, on the same machine at the same time: what it is late by, the
system and Python's global lock are to blame for.
"""

from __future__ import annotations

import io
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from tnn_runtime import Classifier, DeadlineExceeded
from tnn_runtime.bench import machine
from tnn_runtime.console import Parser, positive_int, run

DEADLINES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
GAP_S = 0.02
SHOWN = (50, 90, 99, 100)


@contextmanager
def load(classifier: Classifier, waiting: int) -> Iterator[None]:
    """Keep so many images without a deadline waiting meanwhile; half of them are files to decode."""
    height, width, channels = classifier.info["input_shape"]
    ready = np.zeros((height, width, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)).save(file, "JPEG")
    sources: list[Any] = [file.getvalue(), ready]
    done = threading.Event()

    def feed() -> None:
        while not done.is_set():
            for number in range(waiting - classifier.health.open_requests):
                classifier.submit(sources[number % 2], timeout_s=math.inf)
            done.wait(GAP_S)

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed)
        try:
            yield
        finally:
            done.set()
        feeding.result()


def late_answers(classifier: Classifier, deadline_s: float, count: int) -> tuple[NDArray[np.float64], int]:
    """Return by how many seconds each deadline was told too late, and how many images had their answer before."""
    image = np.zeros(classifier.info["input_shape"], np.uint8)
    told = np.full(count, np.nan)
    dice = np.random.default_rng(count)
    futures: list[Future[Any]] = []
    for number in range(count):
        submitted = time.monotonic()

        def note(future: Future[Any], number: int = number, submitted: float = submitted) -> None:
            if isinstance(future.exception(), DeadlineExceeded):
                told[number] = time.monotonic() - submitted - deadline_s

        futures.append(classifier.submit(image, timeout_s=deadline_s))
        futures[-1].add_done_callback(note)
        time.sleep(dice.exponential(GAP_S))
    ended = threading.Event()
    for future in futures:
        future.exception()
    futures[-1].add_done_callback(lambda _: ended.set())
    ended.wait()
    return told[~np.isnan(told)], int(np.isnan(told).sum())


def late_sleeps(deadline_s: float, count: int) -> NDArray[np.float64]:
    """Return by how many seconds a thread wakes up too late."""
    late = []
    for _ in range(count):
        started = time.monotonic()
        time.sleep(deadline_s)
        late.append(time.monotonic() - started - deadline_s)
    return np.array(late)


def command(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = Parser("benchmark_deadlines", (__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=positive_int, default=200, help="images with each deadline")
    parser.add_argument("--waiting", type=positive_int, default=512, help="other images that wait all the time")
    options = parser.parse_args(arguments)
    with Classifier.load(options.bundle, options.device, threads=1, max_queue_size=1 << 16) as classifier:
        rows = []
        with load(classifier, options.waiting):
            for deadline in tqdm(DEADLINES_S, desc="measuring", unit="deadline", disable=None):
                late, answered = late_answers(classifier, deadline, options.images)
                rows.append((deadline, late, answered, late_sleeps(deadline, max(20, options.images // 10))))
        batches = classifier.metrics.inference_seconds
        classifier.drain(0)
    print(f"late by, in ms: {', '.join(f'p{share}' for share in SHOWN[:-1])}, most")
    for deadline, late, answered, sleeps in rows:
        print(f"{1000 * deadline:5.0f} ms  told {shown(late)}  control {shown(sleeps)}  {answered} answered before")
    print(f"runs of the model took {1000 * batches.mean:.1f} ms on average; {options.waiting} images waited")
    print(", ".join(f"{name} {value}" for name, value in machine().items() if name in ("cpu", "cores", "load")))


def shown(seconds: NDArray[np.float64]) -> str:
    """Return the percentiles of durations in ms."""
    if not len(seconds):
        return "  -" * len(SHOWN)
    return " ".join(f"{1000 * value:6.1f}" for value in np.percentile(seconds, SHOWN))


if __name__ == "__main__":
    sys.exit(run("benchmark_deadlines", command))
