"""Soak a bundle: many threads submit images, some of them bad, late or cancelled, and every single answer is checked.

    python examples/soak.py runs/demo/bundle-tversky --threads 64 --images 200000    # Linux with glibc 2.33 or later

Each accepted image must be answered once, with the answer that the same image gets when it is alone, or with the error
that fits what was done to it. Memory is measured when all threads rest, after each of many rounds; from a third of the
rounds on it must not grow: the 95% interval of its slope must reach down to 0. The exit code is 1 if anything is wrong.
``--leak`` keeps so many bytes of each answer, to see that it is found.
"""

from __future__ import annotations

import argparse
import ctypes
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

from tnn_runtime import Classifier, DeadlineExceeded, InputError, Prediction, QueueFull

BURST = 16
TOLERANCE = 1e-4
ROUNDS = 60
ENVIRONMENT = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""All memory from glibc, and no caches for each thread: these go on filling for half a million images."""
PATIENCE_S = 60
BAD_IMAGE = b"no image at all"


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
        answer = scores(classifier.predict([image], top_k=1000)[0])
        if all(np.abs(answer - other).max() > 10 * TOLERANCE for other in answers):
            images.append(image)
            answers.append(answer)
    if len(images) < 10:
        sys.exit("soak: error: this model gives nearly the same answer for all images; use a trained one")
    return images, np.stack(answers)


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
        burst: list[tuple[str, int, Future[list[Prediction]]]] = []
        while len(burst) < min(BURST, left):
            which = dice.randrange(len(images))
            kind = dice.choices(["plain", "cancelled", "late", "bad"], [85, 5, 5, 5])[0]
            try:
                future = classifier.submit(
                    BAD_IMAGE if kind == "bad" else images[which],
                    top_k=1000,
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


def check(kind: str, future: Future[list[Prediction]], answers: NDArray[np.float64], which: int) -> str:
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
        samples.append((record.answered, bytes_in_use()))
        progress(record.answered - (samples[-2][0] if len(samples) > 1 else 0))

    barrier = threading.Barrier(threads, rest)

    def work(seed: int) -> None:
        try:
            for number in range(ROUNDS):
                first, last = (total * (number * threads + seed + end) // (ROUNDS * threads) for end in (0, 1))
                client(classifier, images, answers, last - first, number * threads + seed, record, leak)
                barrier.wait()
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(threads) as pool:
        for running in [pool.submit(work, seed) for seed in range(threads)]:
            running.result()
    return record, samples


def memory_slope(samples: Sequence[tuple[int, int]]) -> tuple[float, tuple[float, float]]:
    """Return the growth of memory in bytes an image, from a third of the rounds on, with a 95% interval."""
    counts, sizes = np.array(samples[len(samples) // 3 :], dtype=float).T
    fit = stats.linregress(counts, sizes)
    margin = stats.t.ppf(0.975, len(counts) - 2) * fit.stderr
    return float(fit.slope), (float(fit.slope - margin), float(fit.slope + margin))


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]

    @property
    def in_use(self) -> int:
        """Bytes of allocated blocks: ``uordblks`` and, for those that were mapped on their own, ``hblkhd``."""
        return int(self.field_7 + self.field_4)


def bytes_in_use() -> int:
    """Return how many bytes are allocated, by Python and by all libraries.

    The resident memory of the process says less: it follows the highest moment so far, and fragments.
    """
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    found: MallInfo = mallinfo2()
    return found.in_use


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run the soak test and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES")
    options = parser.parse_args()
    if not os.environ.items() >= ENVIRONMENT.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})  # noqa: S606

    with Classifier.load(
        options.bundle, options.device, threads=1, max_batch_size=32, max_queue_delay_ms=1, max_queue_size=512
    ) as classifier:
        images, answers = distinct_images(classifier)
        started = time.monotonic()
        with tqdm(total=options.images, desc="soaking", unit="image", disable=None, delay=2) as progress:
            record, samples = soak(
                classifier, images, answers, options.threads, options.images, options.leak, progress.update
            )
        elapsed = time.monotonic() - started
        metrics = classifier.metrics

    for outcome, count in sorted(record.outcomes.items()):
        print(f"{count:8}  {outcome}")
    slope, (low, high) = memory_slope(samples)
    print(f"{len(images)} distinct images, {options.threads} threads, {options.images / elapsed:.0f} images/s")
    print(f"batches of {metrics.batch_sizes.mean:.1f} images on average")
    print(f"memory {samples[-1][1] / 2**20:.1f} MiB in use, {resident_bytes() / 2**20:.0f} MiB resident")
    print(f"growth {slope:.2f} bytes an image ({low:.2f} to {high:.2f})")
    problems = record.wrong[:5]
    if record.answered != options.images:
        problems.append(f"{options.images} images were accepted, {record.answered} were answered")
    if metrics.waiting or metrics.running:
        problems.append(f"{metrics.waiting} images wait and {metrics.running} batches run after the end")
    if low > 0:
        problems.append("memory grows")
    for problem in problems:
        print(f"FAILED: {problem}")
    print("failed" if problems else "passed: every image was answered once, with its own answer")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
