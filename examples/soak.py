"""Soak a bundle: many threads submit images, some of them bad, late or cancelled, and every single answer is checked.

    MALLOC_ARENA_MAX=1 python examples/soak.py runs/demo/bundle-tversky --threads 64 --images 1600000

Each accepted image must be answered once, with the answer that the same image gets when it is alone, or with the error
that fits what was done to it. Memory is measured between many rounds, when no image is on its way; in the last half of
the rounds it must not grow: the 95% interval of its slope must reach down to ``--tolerance``, by default 1 byte an
image. An object that is lost with each batch is more than that; what is less is a page or an arena of the allocators
now and then, when the queue was longer than ever before. Until then the caches of the allocator (a single one for all
threads), of NumPy and of ONNX Runtime fill up, for up to 700,000 images; for fewer, allow more. ``--leak``
keeps so many bytes of each answer, to be found.
What may not be is an error, and the exit code 1.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from tnn_runtime import (
    Classifier,
    DeadlineExceeded,
    InputError,
    Prediction,
    Predictions,
    QueueFull,
    TnnError,
    UsageError,
)
from tnn_runtime.console import Parser, positive_int, run

ALL_CLASSES = 1 << 16
BURST = 16
MAX_BATCH_SIZE = 32
TOLERANCE = 1e-4
ROUNDS = 60
PATIENCE_S = 60
BAD_IMAGE = b"no image at all"


class SoakError(TnnError):
    """Something was found that may not be."""


@dataclass
class Record:
    """What all threads have seen so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: list[bytes] = field(default_factory=list)


def distinct_images(classifier: Classifier, count: int = 400) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """Return random images that cannot be mistaken for each other by their answers, and these answers.

    Each image is run alone; the answers are scores ``[N, classes]`` that differ by far more than rounding.
    """
    generator = np.random.default_rng(0)
    images: list[NDArray[np.uint8]] = []
    answers: list[NDArray[np.float64]] = []
    for _ in range(count):
        low, high = sorted(generator.integers(0, 257, 2))
        image = generator.integers(low, high + 1, classifier.info["input_shape"]).clip(0, 255).astype(np.uint8)
        answer = scores(classifier.predict([image], ALL_CLASSES)[0])
        if all(np.abs(answer - other).max() > 10 * TOLERANCE for other in answers):
            images.append(image)
            answers.append(answer)
    if len(images) < 10:
        raise UsageError("this model gives nearly the same answer for all images; use a trained one")
    return images, np.stack(answers)


def warm_up(classifier: Classifier) -> None:
    """Run each batch size, and fill the cache in which NumPy keeps some freed memory of each small size."""
    for size in range(1, MAX_BATCH_SIZE + 1):
        classifier.logits(np.zeros((size, *classifier.info["input_shape"]), np.uint8))
    for size in range(1024):
        _ = [np.empty(size, np.uint8) for _ in range(16)]


def scores(ranked: Sequence[Prediction]) -> NDArray[np.float64]:
    """Return the scores in the order of the classes."""
    return np.array([prediction.score for prediction in sorted(ranked, key=lambda prediction: prediction.index)])


def client(
    classifier: Classifier,
    images: Sequence[NDArray[np.uint8]],
    answers: NDArray[np.float64],
    share: int,
    seed: int,
    record: Record,
    leak: int,
) -> None:
    """Get ``share`` images accepted, in bursts, and check what becomes of each."""
    dice = random.Random(seed)  # noqa: S311
    left = share
    while left:
        burst: list[tuple[str, int, Future[Predictions]]] = []
        while len(burst) < min(BURST, left):
            which = dice.randrange(len(images))
            kind = dice.choices(["plain", "cancelled", "late", "bad"], [85, 5, 5, 5])[0]
            try:
                future = classifier.submit(
                    BAD_IMAGE if kind == "bad" else images[which],
                    ALL_CLASSES,
                    timeout_s=dice.choice([0.0, 0.001, 0.01]) if kind == "late" else None,
                )
            except QueueFull:
                with record.lock:
                    record.outcomes["refused: queue full"] += 1
                time.sleep(dice.random() * 0.01)
                continue
            future.add_done_callback(lambda _: count_answer(record))
            if kind == "cancelled":
                kind = "cancelled" if future.cancel() else "plain"
            burst.append((kind, which, future))
        for kind, which, future in burst:
            outcome = check(kind, future, answers, which)
            with record.lock:
                record.outcomes[outcome] += 1
                if outcome.startswith("WRONG"):
                    record.wrong.append(outcome)
                if leak:
                    record.kept.append(os.urandom(leak))
        left -= len(burst)


def count_answer(record: Record) -> None:
    """Count one call of the callback of a future."""
    with record.lock:
        record.answered += 1


def check(kind: str, future: Future[Predictions], answers: NDArray[np.float64], which: int) -> str:
    """Return what became of an image, in words that begin with WRONG if that may not be."""
    try:
        found = scores(future.result(PATIENCE_S))
    except CancelledError:
        return "cancelled" if kind == "cancelled" else f"WRONG: {kind} image was cancelled"
    except DeadlineExceeded:
        return "deadline exceeded" if kind == "late" else f"WRONG: {kind} image was late"
    except InputError:
        return "bad image refused" if kind == "bad" else f"WRONG: {kind} image was refused"
    except TimeoutError:
        return f"WRONG: {kind} image was not answered in {PATIENCE_S} s"
    if kind in ("cancelled", "bad"):
        return f"WRONG: {kind} image was answered"
    nearest = int(np.abs(answers - found).max(axis=1).argmin())
    if nearest != which or np.abs(answers[which] - found).max() > TOLERANCE:
        return f"WRONG: image {which} got the answer of image {nearest}"
    return "answered"


def soak(
    classifier: Classifier,
    images: Sequence[NDArray[np.uint8]],
    answers: NDArray[np.float64],
    threads: int,
    total: int,
    leak: int,
    progress: Callable[[int], object],
) -> tuple[Record, list[tuple[int, int]]]:
    """Submit images from many threads, round by round, and return what they saw, and the memory after each round."""
    record, samples = Record(), []

    def rest() -> None:
        gc.collect()
        samples.append((record.answered, resident_bytes()))
        progress(record.answered)

    barrier = threading.Barrier(threads, rest)

    def work(number: int) -> None:
        try:
            for round_number in range(ROUNDS):
                place = round_number * threads + number
                first, last = (total * end // (ROUNDS * threads) for end in (place, place + 1))
                client(classifier, images, answers, last - first, place, record, leak)
                barrier.wait()
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(threads) as pool:
        for running in [pool.submit(work, number) for number in range(threads)]:
            running.result()
    return record, samples


def memory_slope(samples: Sequence[tuple[int, int]]) -> tuple[float, tuple[float, float]]:
    """Return the growth of memory in bytes an image, in the last half of the rounds, with a 95% interval.

    This is the median of the slopes between all pairs of rounds (Theil and Sen): a single step up, such as a queue that
    was longer than ever before, does not tilt it; a leak, which is in every round, does.
    """
    counts, sizes = np.array(samples[len(samples) // 2 :], dtype=float).T
    slope, _, low, high = stats.theilslopes(sizes, counts)
    return float(slope), (float(low), float(high))


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command(arguments: Sequence[str]) -> None:
    """Run the soak test and print what was found."""
    parser = Parser("soak", __doc__ or "")
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("--device", default="cpu", help="as in Classifier.load")
    parser.add_argument("--threads", type=positive_int, default=64, help="threads that submit images")
    parser.add_argument("--images", type=positive_int, default=1_600_000, help="images to be accepted")
    parser.add_argument(
        "--tolerance", type=float, default=1.0, metavar="BYTES", help="by which memory may grow with each image"
    )
    parser.add_argument("--leak", type=positive_int, default=0, metavar="BYTES", help="to keep of each answer")
    options = parser.parse_args(arguments)
    with Classifier.load(
        options.bundle,
        options.device,
        threads=1,
        max_batch_size=MAX_BATCH_SIZE,
        max_queue_delay_ms=1,
        max_queue_size=512,
    ) as classifier:
        images, answers = distinct_images(classifier)
        warm_up(classifier)
        started = time.monotonic()
        with tqdm(total=options.images, desc="soaking", unit="image", disable=None, delay=2) as progress:
            record, samples = soak(
                classifier,
                images,
                answers,
                options.threads,
                options.images,
                options.leak,
                lambda n: progress.update(n - progress.n),
            )
        elapsed = time.monotonic() - started
        metrics = classifier.metrics

    for outcome, count in sorted(record.outcomes.items()):
        print(f"{count:8}  {outcome}")
    slope, (low, high) = memory_slope(samples)
    print(f"{len(images)} distinct images, {options.threads} threads, {options.images / elapsed:.0f} images/s")
    print(f"batches of {metrics.batch_sizes.mean:.1f} images on average")
    print(f"memory {samples[-1][1] / 2**20:.0f} MiB, growth {slope:.2f} bytes an image ({low:.2f} to {high:.2f})")
    problems = record.wrong[:5]
    if record.answered != options.images:
        problems.append(f"{options.images} images were accepted, {record.answered} were answered")
    if metrics.waiting or metrics.running:
        problems.append(f"{metrics.waiting} images wait and {metrics.running} batches run after the end")
    if low > options.tolerance:
        problems.append(
            f"memory grows by {low:.0f} bytes an image at least (caches do so at first: more --images, or --tolerance)"
        )
    if problems:
        raise SoakError("; ".join(problems))
    print("passed: every image was answered once, with its own answer")


if __name__ == "__main__":
    sys.exit(run("soak", command))
