"""One process of a benchmark: loads contenders in random order, times them by turns, and checks what they answer.

``python -m tnn_runtime.bench.worker`` compares bundles. It reads a `Job` from standard input and writes lines of JSON:
one for each block, and one with the result or the error. A program that compares something else calls `serve` with an
`Offer` of its own, and is started by `run_job` just the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.backends import BackendOptions, TimedRun, open_device_timer, parse_device
from tnn_runtime.bench.environment import Clock, thread_settings
from tnn_runtime.bench.errors import BenchmarkError, error_to_json
from tnn_runtime.bench.memory import device_bytes, peak_bytes, resident_bytes
from tnn_runtime.bench.timing import TimedCall, by_wall_clock, repeats_for, take_turns, warm_up
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import ProviderUnavailable, RunError, TnnError

__all__ = ["Job", "Offer", "Opened", "serve"]

_MOST_INPUTS = 16
_FEWEST_INPUTS = 3
_INPUT_BYTES = 1 << 27
_INPUT_SECONDS = 2.0
_PATCH = 8
_MEMORY_CALLS = 4

Images: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What one process has to do.

    Args:
        what: What is compared, for the `Offer` to know.
        threads: CPU threads of each contender.
        batches: Images a call.
        blocks: Turns that each contender gets at each batch size.
        seed: Draws the order of loading, of batch sizes and of turns, and the images.
        only: Load and run this contender alone, and measure its memory instead.
    """

    what: Mapping[str, Any]
    threads: int
    batches: Sequence[int]
    blocks: int
    seed: int
    only: str | None = None


@dataclass(frozen=True)
class Opened:
    """A contender that is ready.

    Args:
        call: From images, uint8 ``[N, H, W, C]``, to logits ``[N, classes]``; returns when they are computed.
        about: What tells how it runs, such as versions.
        device_timer: Opens a call that also gives the seconds by the clock of the GPU, where there is one.
    """

    call: Callable[[Images], NDArray[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    device_timer: Callable[[], AbstractContextManager[TimedRun]] | None = None


@dataclass(frozen=True)
class Offer:
    """The contenders of a job.

    Args:
        openers: What loads each of them; their libraries are imported already.
        shape: Height, width and channels of the images.
        alike: Those that must give the same logits.
        tolerance: How much logits may differ, as a share of the largest; from call to call as well.
        device: Where all of them run, as in `Classifier.load`.
    """

    openers: Mapping[str, Callable[[], Opened]]
    shape: tuple[int, ...]
    alike: Sequence[str] = ()
    tolerance: float = 1e-4
    device: str = "cpu"


def serve(offer_for: Callable[[Job], Offer]) -> int:
    """Do the job that standard input brings, and return the exit code."""
    # What libraries print goes to standard error: the other end reads JSON.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    job = Job(**json.loads(sys.stdin.readline()))
    try:
        offer = offer_for(job)
        result = _measure_memory(job, offer) if job.only else _measure_time(job, offer, partial(send, blocks=1))
    except TnnError as error:
        send(error=error_to_json(error))
        return 1
    send(result=result)
    return 0


def _bundles(job: Job) -> Offer:
    """Offer the bundles A and B and a second copy of B; ``what`` has paths, device and shape."""
    what = job.what
    device, largest = what["device"], max(job.batches)
    # Before the memory is measured, which is to be that of the bundle.
    with contextlib.suppress(ImportError):
        importlib.import_module("onnxruntime")

    def open_one(path: str) -> Opened:
        classifier = Classifier.load(
            path, device, threads=job.threads, max_batch_size=largest, public_key=what["public_key"]
        )
        about = {key: value for key, value in classifier.info.items() if key != "class_names"}
        if parse_device(about["device"]).is_cpu:
            return Opened(classifier.logits, about)
        bundle = open_bundle(path, what["public_key"])
        options = BackendOptions(threads=job.threads, max_batch_size=largest)
        return Opened(classifier.logits, about, partial(open_device_timer, bundle, about["device"], options))

    openers = {name: partial(open_one, what[path]) for name, path in (("a", "a"), ("b", "b"), ("control", "b"))}
    return Offer(openers, tuple(what["shape"]), alike=("b", "control"), device=device)


def _measure_time(job: Job, offer: Offer, after_block: Callable[[], object]) -> dict[str, Any]:
    random = np.random.default_rng(job.seed)
    order = [str(name) for name in random.permutation(list(offer.openers))]
    opened = {name: offer.openers[name]() for name in order}
    clock = Clock()

    def end_block() -> None:
        clock.read()
        after_block()

    with contextlib.ExitStack() as stack:
        timers, untimed = _open_timers(opened, stack)
        timed = [
            _measure_batch(int(batch), job.blocks, opened, timers, offer, random, end_block)
            for batch in random.permutation(job.batches)
        ]
    return {
        "threads": job.threads,
        "seed": job.seed,
        "load_order": order,
        "about": {name: dict(one.about) for name, one in opened.items()},
        "no_device_time": untimed,
        "clock_mhz": clock.summary(),
        **thread_settings(),
        "batches": timed,
    }


def _open_timers(opened: Mapping[str, Opened], stack: contextlib.ExitStack) -> tuple[dict[str, TimedCall], str | None]:
    """Return calls that are timed by the GPU, or none of them and the reason."""
    try:
        return {name: stack.enter_context(one.device_timer()) for name, one in opened.items() if one.device_timer}, None
    except (ProviderUnavailable, RunError) as error:
        return {}, str(error)


def _measure_batch(
    batch: int,
    blocks: int,
    opened: Mapping[str, Opened],
    timers: Mapping[str, TimedCall],
    offer: Offer,
    random: np.random.Generator,
    after_block: Callable[[], object],
) -> dict[str, Any]:
    images = _draw_images(batch, offer.shape, random)
    calls = {name: one.call for name, one in opened.items()}
    inputs = [next(images)]
    slowest = max(_seconds(call, inputs[0]) for call in calls.values())
    affordable = min(_INPUT_BYTES // inputs[0].nbytes, int(_INPUT_SECONDS / slowest), _MOST_INPUTS)
    inputs += [next(images) for _ in range(max(affordable, _FEWEST_INPUTS) - 1)]
    expected = {name: [np.array(call(value)) for value in inputs] for name, call in calls.items()}

    def check(name: str, number: int, output: NDArray[Any]) -> None:
        if not _agree(output, expected[name][number], offer.tolerance):
            raise BenchmarkError(
                f"{name} gives other logits at batch {batch} while it is timed than before, on the same images; "
                f"expected them within {offer.tolerance:g} of the largest: no latency of a wrong answer is told"
            )

    for name in offer.alike[1:]:
        first = offer.alike[0]
        for ours, theirs in zip(expected[first], expected[name], strict=True):
            if not _agree(theirs, ours, offer.tolerance):
                raise BenchmarkError(
                    f"{name} gives other logits than {first} at batch {batch}; expected them within "
                    f"{offer.tolerance:g} of the largest: compare programs that do the same"
                )
    warm_ups = {str(name): warm_up(calls[name], inputs) for name in random.permutation(list(calls))}
    repeats = repeats_for(warm_ups)
    seconds = take_turns(by_wall_clock(calls), inputs, blocks, repeats, random, after_block=after_block, check=check)
    take_turns(timers, inputs, 1, len(inputs), random)  # the first calls are slower
    device_seconds = take_turns(timers, inputs, blocks, repeats, random, check=check)
    return {
        "batch": batch,
        "distinct_inputs": len(inputs),
        "warm_up": {name: dataclasses.asdict(warmed) for name, warmed in warm_ups.items()},
        "seconds": seconds,
        "device_seconds": device_seconds or None,
    }


def _measure_memory(job: Job, offer: Offer) -> dict[str, Any]:
    """Return by how much one contender, loaded and run alone, makes the memory grow, up to each batch size."""
    batches = sorted(job.batches)
    images = next(_draw_images(batches[-1], offer.shape, np.random.default_rng(job.seed)))
    resident, on_device = resident_bytes(), device_bytes(offer.device)
    opened = offer.openers[str(job.only)]()
    grown = []
    for batch in batches:
        for _ in range(_MEMORY_CALLS):
            opened.call(images[:batch])
        device = device_bytes(str(opened.about.get("device", offer.device)))
        grown.append(
            {
                "batch": batch,
                "resident_bytes": peak_bytes() - resident,
                "device_bytes": None if device is None or on_device is None else device - on_device,
            }
        )
    return {"batches": grown}


def _draw_images(batch: int, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[Images]:
    """Yield batches of random patches, whose logits differ more from each other than those of plain noise."""
    height, width, channels = shape
    while True:
        patches = random.integers(0, 256, (batch, -(-height // _PATCH), -(-width // _PATCH), channels), np.uint8)
        images = patches.repeat(_PATCH, axis=1).repeat(_PATCH, axis=2)
        yield np.ascontiguousarray(images[:, :height, :width])


def _agree(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((np.abs(found - expected) <= tolerance * np.abs(expected).max(initial=0)).all())


def _seconds(call: Callable[[Images], object], images: Images) -> float:
    """Return the time of the second call."""
    call(images)
    started = time.perf_counter()
    call(images)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(serve(_bundles))
