"""Latency of two bundles against each other, measured so that the ratio can be believed.

Three classifiers take turns in random order, block by block: A, B, and a second copy of B as the control. A and B
see the same machine at nearly the same time, so slow moments hit both; the control shows what ratio this machine
prints for two things that are equal.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import UsageError

__all__ = ["Comparison", "compare_bundles", "interleave", "machine", "median_ratio"]

_Call: TypeAlias = Callable[[NDArray[np.uint8]], object]

_WARM_UP_SECONDS = 0.3
_BLOCK_SECONDS = 0.02
_RESAMPLES = 2000
_DISTINCT_BATCHES = 8


@dataclass(frozen=True)
class Comparison:
    """Latencies of A and B at one batch size.

    Args:
        batch: Images a call.
        threads: CPU threads a call.
        a_ms: Milliseconds of single calls of A: ``p50``, ``p90``, ``p99``.
        b_ms: The same for B.
        ratio: Median latency of A over that of B.
        ratio_ci95: Its 95% bootstrap interval over blocks.
        aa_ratio: The same ratio for two copies of B: the control, 1 on a perfect machine.
        aa_ratio_ci95: Its interval.
        samples_ms: All latencies, ``{"a", "b", "control"}``, one list of calls for each block.
    """

    batch: int
    threads: int
    a_ms: dict[str, float]
    b_ms: dict[str, float]
    ratio: float
    ratio_ci95: tuple[float, float]
    aa_ratio: float
    aa_ratio_ci95: tuple[float, float]
    samples_ms: dict[str, list[list[float]]]


def compare_bundles(
    a: str | Path,
    b: str | Path,
    batches: Sequence[int] = (1, 32),
    *,
    device: str = "cpu",
    threads: int = 1,
    blocks: int = 30,
    public_key: str | Path | None = None,
    progress: Callable[[], object] = lambda: None,
) -> list[Comparison]:
    """Compare the latency of ``Classifier.logits`` on ready arrays of random pixels.

    Args:
        a: The bundle in the numerator of the ratio.
        b: The bundle in the denominator; it is loaded twice, for the control.
        batches: Images a call.
        device: Where to run, as in `Classifier.load`.
        threads: CPU threads of each classifier.
        blocks: Rounds in which each of the three gets its turn.
        public_key: The key that both must be signed with, as in `Classifier.load`.
        progress: Called after each round.

    Raises:
        UsageError: If the bundles take different images, or a number is below 1.
    """
    if min(*batches, blocks) < 1:
        raise UsageError(f"batch sizes are {list(batches)} and blocks {blocks}; expected at least 1")
    load = partial(Classifier.load, device=device, threads=threads, max_batch_size=max(batches), public_key=public_key)
    with load(a) as first, load(b) as second, load(b) as control:
        shape = first.info["input_shape"]
        if second.info["input_shape"] != shape:
            raise UsageError(
                f"{a} takes images of shape {shape} and {b} of {second.info['input_shape']}; compare models of one size"
            )
        random = np.random.default_rng(0)
        comparisons = []
        for batch in batches:
            inputs = [random.integers(0, 256, (batch, *shape), dtype=np.uint8) for _ in range(_DISTINCT_BATCHES)]
            calls = {"a": first.logits, "b": second.logits, "control": control.logits}
            samples = interleave(calls, inputs, blocks, random, progress)
            ratio, interval = median_ratio(samples["a"], samples["b"], random)
            aa_ratio, aa_interval = median_ratio(samples["control"], samples["b"], random)
            milliseconds = {
                name: [[1e3 * value for value in block] for block in turns] for name, turns in samples.items()
            }
            comparisons.append(
                Comparison(
                    batch,
                    threads,
                    _percentiles(samples["a"]),
                    _percentiles(samples["b"]),
                    ratio,
                    interval,
                    aa_ratio,
                    aa_interval,
                    milliseconds,
                )
            )
    return comparisons


def interleave(
    calls: Mapping[str, _Call],
    inputs: Sequence[NDArray[np.uint8]],
    blocks: int,
    random: np.random.Generator,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Return the seconds of each call, block by block, after a warm-up; every block draws a new order."""
    slowest = max(_warm_up(call, inputs[0]) for call in calls.values())
    repeats = max(3, round(_BLOCK_SECONDS / slowest))
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(blocks):
        for name in random.permutation(names):
            samples[name].append([_time(calls[name], inputs[turn % len(inputs)]) for turn in range(repeats)])
        progress()
    return samples


def median_ratio(
    numerator: list[list[float]], denominator: list[list[float]], random: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """Return the ratio of the medians, with a 95% bootstrap interval over blocks drawn in pairs.

    Args:
        numerator: Seconds of each call, block by block, as `interleave` returns them.
        denominator: The same number of blocks and calls of what it is compared with.
        random: Draws the blocks.
    """
    top, bottom = np.asarray(numerator), np.asarray(denominator)
    drawn = random.integers(0, len(top), (_RESAMPLES, len(top)))
    ratios = np.median(top[drawn].reshape(_RESAMPLES, -1), axis=1) / np.median(
        bottom[drawn].reshape(_RESAMPLES, -1), axis=1
    )
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(top) / np.median(bottom)), (float(low), float(high))


def machine() -> dict[str, Any]:
    """Return what a reader needs to know about the machine that was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
            cpu,
        )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _warm_up(call: _Call, batch: NDArray[np.uint8]) -> float:
    """Run for a while and return the seconds of the fastest call."""
    started, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - started < _WARM_UP_SECONDS:
        fastest = min(fastest, _time(call, batch))
    return fastest


def _time(call: _Call, batch: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    call(batch)
    return time.perf_counter() - started


def _percentiles(samples: list[list[float]]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(np.concatenate(samples), [50, 90, 99]) * 1e3
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}
