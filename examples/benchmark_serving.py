"""What micro-batching costs: throughput of many callers against batches made by hand, and latency at half load.

    python examples/benchmark_serving.py runs/demo/bundle-tversky --callers 64 --batch 32 --threads 1

Throughput: callers that submit one image after the other take turns, for a second each and in random order, with a loop
that calls `Classifier.logits` on ready batches of the same size ("offline") and with a second such loop, the control.
Latency: images arrive at random (a Poisson process) at half of the lower of the two rates; measured is the time from
the planned arrival to the answer, against what the design promises: the queue's delay and the time of two full batches.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_runtime import Classifier
from tnn_runtime.bench import machine, ratio
from tnn_runtime.console import Parser, positive_int, run

WARM_UP_S = 1.0
GAP_S = 0.002
"""Callers of one batch see their answers within so many seconds of each other."""


def offline_rate(classifier: Classifier, batch: NDArray[np.uint8], seconds: float) -> float:
    """Return the images/s of one loop over ready batches."""
    started, count, elapsed = time.perf_counter(), 0, 0.0
    while count == 0 or elapsed < seconds:
        classifier.logits(batch)
        count += len(batch)
        elapsed = time.perf_counter() - started
    return count / elapsed


def callers_rate(classifier: Classifier, image: NDArray[np.uint8], callers: int, seconds: float) -> float:
    """Return the images/s of many threads that each wait for one answer after the other.

    Answers come in batches: counted are those after the first batch, up to the last one, in the time between the two,
    which is longer than asked for where a machine stands still.
    """
    answered: list[float] = []
    begin, end = threading.Barrier(callers + 1), threading.Event()

    def call() -> None:
        begin.wait()
        while not end.is_set():
            classifier.submit(image, top_k=1).result()
            answered.append(time.perf_counter())

    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(call) for _ in range(callers)]
        begin.wait()
        time.sleep(seconds)
        while max(answered, default=0.0) - min(answered, default=0.0) <= GAP_S and not any(map(Future.done, running)):
            time.sleep(GAP_S)
        times = np.sort(answered)
        end.set()
        for future in running:
            future.result()
    first = times[0] + GAP_S
    return float((times > first).sum() / (times[-1] - times[times <= first][-1]))


def latencies_at(classifier: Classifier, image: NDArray[np.uint8], rate: float, seconds: float) -> NDArray[np.float64]:
    """Return the seconds from arrival to answer of images that arrive at random, ``rate`` of them a second."""
    gaps = np.random.default_rng(0).exponential(1 / rate, max(1, int(rate * seconds)))
    answered = np.zeros(len(gaps))
    futures: list[Future[Any]] = []
    arrivals = time.perf_counter() + 0.1 + np.cumsum(gaps)
    for number, arrival in enumerate(arrivals):
        while (left := arrival - time.perf_counter()) > 0:
            time.sleep(left)

        def note(_: Future[Any], number: int = number) -> None:
            answered[number] = time.perf_counter()

        futures.append(classifier.submit(image, top_k=1))
        futures[-1].add_done_callback(note)
    wait(futures)
    return np.asarray(answered - arrivals)


def command(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = Parser("benchmark_serving", (__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads of the model")
    parser.add_argument("--callers", type=positive_int, default=64, help="threads that submit images")
    parser.add_argument("--batch", type=positive_int, default=32, help="images a batch, at most")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="how long an image waits for others")
    parser.add_argument("--blocks", type=positive_int, default=20, help="turns of each, one second long")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    options: argparse.Namespace = parser.parse_args(arguments)

    random = np.random.default_rng(0)
    with Classifier.load(
        options.bundle,
        options.device,
        threads=options.threads,
        max_batch_size=options.batch,
        max_queue_delay_ms=options.delay_ms,
        max_queue_size=1 << 16,
    ) as classifier:
        batch = random.integers(0, 256, (options.batch, *classifier.info["input_shape"]), dtype=np.uint8)
        turns = {
            "callers": lambda: callers_rate(classifier, batch[0], options.callers, options.seconds),
            "offline": lambda: offline_rate(classifier, batch, options.seconds),
            "control": lambda: offline_rate(classifier, batch, options.seconds),
        }
        rates: dict[str, list[float]] = {name: [] for name in turns}
        offline_rate(classifier, batch, WARM_UP_S)
        for _ in tqdm(range(options.blocks), desc="throughput", unit="block", disable=None):
            for name in random.permutation(list(turns)):
                rates[name].append(turns[name]())
        offline, callers = (float(np.median(rates[name])) for name in ("offline", "callers"))
        rate = min(offline, callers) / 2
        # `ratio` compares seconds, so the rates are turned around: seconds an image.
        samples = {name: [[[1 / rate] for rate in found]] for name, found in rates.items()}
        for name in ("callers", "control"):
            found = ratio(samples["offline"], samples[name], random)
            print(f"throughput, {name} / offline: {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
        size = classifier.metrics.batch_sizes
        print(f"offline {offline:.0f} images/s, callers {callers:.0f} images/s")

        latencies = latencies_at(classifier, batch[0], rate, options.blocks * options.seconds)
        after = classifier.metrics.batch_sizes
        batch_s = options.batch / offline
        bound = options.delay_ms / 1e3 + 2 * batch_s
        p50, p90, p99 = 1e3 * np.percentile(latencies, [50, 90, 99])
        print(
            f"half load, {len(latencies)} images at {rate:.0f} a second, in batches of "
            f"{(after.total - size.total) / (after.count - size.count):.1f} on average"
        )
        print(
            f"latency p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f} ms; delay and two batch times: {1e3 * bound:.1f} ms"
        )
    print(f"{machine()['cpu']}, {options.device}, {options.threads} threads of the model, {options.callers} callers")


if __name__ == "__main__":
    sys.exit(run("benchmark_serving", command))
