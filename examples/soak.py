"""Soak a bundle: many threads submit images, some of them bad, late or cancelled, and every single answer is checked.

    MALLOC_ARENA_MAX=1 python examples/soak.py runs/demo/bundle-tversky --threads 64 --images 1600000
    MALLOC_ARENA_MAX=1 python examples/soak.py runs/demo/bundle-tversky --reload runs/demo/bundle-linear --every 3

Each accepted image must be answered once, with the answer that the same image gets when it is alone, or with the error
that fits what was done to it. With ``--reload`` the bundle is exchanged for another one and back, again and again, and
the answer must be that of the bundle that accepted the image. Some of the bad images are made to cost far more than
their pixels do. Memory is measured between many rounds, when no image is on its way; in the last half of
the rounds it must not grow: the 95% interval of its slope must reach down to ``--tolerance``, by default 1 byte an
image. An object that is lost with each batch is more than that; what is less is a page or an arena of the allocators
now and then, when the queue was longer than ever before. Until then the caches of the allocator (a single one for all
threads), of NumPy and of ONNX Runtime fill up, for up to 700,000 images; for fewer, allow more. ``--leak``
keeps so many bytes of each answer, to be found.
What may not be is an error, and the exit code 1.
"""

from __future__ import annotations

import functools
import gc
import io
import itertools
import operator
import os
import random
import struct
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from tqdm import tqdm

from tnn_runtime import (
    Classifier,
    DeadlineExceeded,
    Deployment,
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


Scores = NDArray[np.float64]


class SoakError(TnnError):
    """Something was found that may not be."""


def bombs() -> list[bytes]:
    """Return files that are made to cost: a JPEG of 10,000 scans, a PNG of 60,000 x 60,000 pixels, a BMP of runs."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG", subsampling=0)
    Image.new("1", (8, 8)).save(png, "PNG")
    painted, header = jpeg.getvalue(), png.getvalue()
    start, end = painted.index(b"\xff\xda"), painted.rindex(b"\xff\xd9")
    size_chunk = b"IHDR" + struct.pack(">II", 60_000, 60_000) + header[24:29]
    size, offset = 2 + 2 * 2500, 14 + 40 + 4 * 256
    info = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, size, 0, 0, 256, 0)
    runs = (
        b"BM" + struct.pack("<IHHI", offset + size, 0, 0, offset) + info + bytes(4 * 256) + b"\xff\x01" * 2500 + b"\0\1"
    )
    return [
        painted[:start] + painted[start:end] * 10_000 + painted[end:],
        header[:12] + size_chunk + struct.pack(">I", zlib.crc32(size_chunk)) + header[33:],
        runs,
    ]


@dataclass
class Record:
    """What all threads have seen so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: list[bytes] = field(default_factory=list)


def distinct_images(
    classifiers: Sequence[Classifier], count: int = 400
) -> tuple[list[NDArray[np.uint8]], dict[str, Scores]]:
    """Return random images that cannot be mistaken for each other by their answers, and these answers.

    Each image is run alone. For each version of the bundle, the answers are scores ``[N, classes]``, which differ by
    far more than rounding from each other and from those of the other versions.
    """
    generator = np.random.default_rng(0)
    images: list[NDArray[np.uint8]] = []
    found: list[list[Scores]] = []
    seen: dict[int, list[Scores]] = defaultdict(list)
    for _ in range(count):
        low, high = sorted(generator.integers(0, 257, 2))
        image = generator.integers(low, high + 1, classifiers[0].info["input_shape"]).clip(0, 255).astype(np.uint8)
        answers = [scores(classifier.predict([image], ALL_CLASSES)[0]) for classifier in classifiers]
        rivals = [[*seen[len(one)], *(other for other in answers if other is not one)] for one in answers]
        if all(differs(one, others) for one, others in zip(answers, rivals, strict=True)):
            images.append(image)
            found.append(answers)
            for one in answers:
                seen[len(one)].append(one)
    if len(images) < 10:
        raise UsageError("these models give nearly the same answer for all images; use trained ones")
    stacked = map(np.stack, zip(*found, strict=True))
    return images, {one.info["version"]: rows for one, rows in zip(classifiers, stacked, strict=True)}


def differs(answer: Scores, others: Sequence[Scores]) -> bool:
    """Return whether an answer cannot be mistaken for any of the others that have as many classes."""
    same = [other for other in others if len(other) == len(answer)]
    return not same or bool(np.abs(np.stack(same) - answer).max(axis=1).min() > 10 * TOLERANCE)


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
    deployment: Deployment,
    images: Sequence[NDArray[np.uint8]],
    answers: dict[str, Scores],
    bad: Sequence[bytes],
    share: int,
    seed: int,
    record: Record,
    leak: int,
) -> None:
    """Get ``share`` images accepted, in bursts, and check what becomes of each."""
    dice = random.Random(seed)  # noqa: S311
    left = share
    while left:
        burst: list[tuple[str, int, set[str], Future[Predictions]]] = []
        while len(burst) < min(BURST, left):
            which = dice.randrange(len(images))
            kind = dice.choices(["plain", "cancelled", "late", "bad"], [85, 5, 5, 5])[0]
            before = deployment.current
            try:
                future = deployment.submit(
                    dice.choice(bad) if kind == "bad" else images[which],
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
            versions = {one.info["version"] for one in (before, deployment.current)}
            burst.append((kind, which, versions, future))
        for kind, which, versions, future in burst:
            outcome = check(kind, future, {version: answers[version] for version in versions}, which)
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


def check(kind: str, future: Future[Predictions], answers: dict[str, Scores], which: int) -> str:
    """Return what became of an image, in words that begin with WRONG if that may not be.

    Args:
        kind: What was done to it.
        future: That of its answer.
        answers: Those to all images, of each version that may have accepted it.
        which: Its place among the images.
    """
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
    rights = [rows for rows in answers.values() if rows.shape[1] == len(found)]
    if any(np.abs(rows[which] - found).max() <= TOLERANCE for rows in rights):
        return "answered"
    if not rights:
        return f"WRONG: image {which} got the answer of another version"
    nearest = int(np.min([np.abs(rows - found).max(axis=1) for rows in rights], axis=0).argmin())
    return f"WRONG: image {which} got the answer of image {nearest}, or of another version"


def soak(
    deployment: Deployment,
    images: Sequence[NDArray[np.uint8]],
    answers: dict[str, Scores],
    threads: int,
    total: int,
    leak: int,
    progress: Callable[[int], object],
) -> tuple[Record, list[tuple[int, int]]]:
    """Submit images from many threads, round by round, and return what they saw, and the memory after each round."""
    record, samples = Record(), []
    bad = [b"no image at all", *bombs()]

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
                client(deployment, images, answers, bad, last - first, place, record, leak)
                barrier.wait()
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(threads) as pool:
        for running in [pool.submit(work, number) for number in range(threads)]:
            running.result()
    return record, samples


@contextmanager
def reloading(deployment: Deployment, bundles: Sequence[Path], every_s: float) -> Iterator[list[bool]]:
    """Exchange the bundle for the next one every few seconds meanwhile; yield whether each reload has lost nothing."""
    done, reloads = threading.Event(), []

    def work() -> None:
        for bundle in itertools.cycle([*bundles[1:], bundles[0]]):
            if done.wait(every_s):
                break
            reloads.append(deployment.reload(bundle))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work) if len(bundles) > 1 else None
        try:
            yield reloads
        finally:
            done.set()
        if running is not None:
            running.result()


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
    parser.add_argument("--reload", type=Path, metavar="BUNDLE", help="bundle to exchange it for, and back")
    parser.add_argument("--every", type=float, default=3.0, metavar="SECONDS", help="between two reloads")
    options = parser.parse_args(arguments)
    bundles = [options.bundle, *([options.reload] if options.reload else [])]
    with ExitStack() as stack:
        classifiers = [
            stack.enter_context(Classifier.load(bundle, options.device, threads=1, max_batch_size=MAX_BATCH_SIZE))
            for bundle in bundles
        ]
        images, answers = distinct_images(classifiers)
        warm_up(classifiers[0])
    with Deployment(
        options.bundle,
        options.device,
        threads=1,
        max_batch_size=MAX_BATCH_SIZE,
        max_queue_delay_ms=1,
        max_queue_size=512,
    ) as deployment:
        started = time.monotonic()
        with (
            tqdm(total=options.images, desc="soaking", unit="image", disable=None, delay=2) as progress,
            reloading(deployment, bundles, options.every) as reloads,
        ):
            record, samples = soak(
                deployment,
                images,
                answers,
                options.threads,
                options.images,
                options.leak,
                lambda n: progress.update(n - progress.n),
            )
        elapsed = time.monotonic() - started
        metrics = functools.reduce(operator.add, deployment.metrics_by_version)

    for outcome, count in sorted(record.outcomes.items()):
        print(f"{count:8}  {outcome}")
    if options.reload:
        print(f"{len(reloads):8}  reloads")
    slope, (low, high) = memory_slope(samples)
    print(f"{len(images)} distinct images, {options.threads} threads, {options.images / elapsed:.0f} images/s")
    print(f"batches of {metrics.batch_sizes.mean:.1f} images on average")
    print(f"memory {samples[-1][1] / 2**20:.0f} MiB, growth {slope:.2f} bytes an image ({low:.2f} to {high:.2f})")
    problems = record.wrong[:5]
    if not all(reloads):
        problems.append("a bundle was exchanged before it had answered all")
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
