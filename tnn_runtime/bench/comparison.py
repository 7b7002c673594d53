"""Two bundles against each other, over several fresh processes, thread counts and batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tnn_runtime.bench.environment import machine
from tnn_runtime.bench.intervals import (
    Claim,
    Estimate,
    Latency,
    Samples,
    difference_us,
    latency,
    no_slower,
    ratio,
)
from tnn_runtime.bench.processes import run_job
from tnn_runtime.bench.worker import Job
from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.errors import UsageError

__all__ = ["Comparison", "DeviceTime", "Memory", "Report", "compare_bundles"]

_CONTENDERS = ("a", "b", "control")
_MOST_MARGIN = 1.0


@dataclass(frozen=True)
class Memory:
    """By how much a process grows that loads one bundle alone and runs it, up to this batch size.

    Args:
        resident_mib: Main memory at its peak, in MiB.
        device_mib: GPU memory, as ``nvidia-smi`` tells it; None on the CPU, or where it tells nothing.
    """

    resident_mib: float
    device_mib: float | None


@dataclass(frozen=True)
class DeviceTime:
    """A against B by the clock of the GPU: from the arrival of the images to the outputs, both in its own memory.

    Args:
        a: Times of A.
        b: Times of B.
        ratio: Of A to B.
        control: The ratio of a second copy of B to B.
        samples_ms: Every call, as in `Comparison`.
    """

    a: Latency
    b: Latency
    ratio: Estimate
    control: Estimate
    samples_ms: Mapping[str, Sequence[Sequence[Sequence[float]]]]


@dataclass(frozen=True)
class Comparison:
    """A against B at one batch size and thread count.

    Args:
        threads: CPU threads a call.
        batch: Images a call.
        a: Latencies of A.
        b: Latencies of B.
        ratio: Of A to B.
        difference_us: A minus B, in microseconds.
        control: The ratio of a second copy of B to B: 1 on a perfect machine.
        claim: Whether A may be called no slower.
        a_memory: Memory of A; None if it was not measured.
        b_memory: Memory of B.
        unstable: How many of the warm-ups, of all contenders in all processes, did not become stable.
        samples_ms: Every call: milliseconds of ``a``, ``b`` and ``control``, by process, block and call.
        device_time: The same by the clock of the GPU; None on the CPU, or where it was not taken.
    """

    threads: int
    batch: int
    a: Latency
    b: Latency
    ratio: Estimate
    difference_us: Estimate
    control: Estimate
    claim: Claim
    a_memory: Memory | None
    b_memory: Memory | None
    unstable: int
    samples_ms: Mapping[str, Sequence[Sequence[Sequence[float]]]]
    device_time: DeviceTime | None

    @property
    def place(self) -> str:
        """Thread count and batch size in words."""
        return f"{self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class Report:
    """All that a benchmark found.

    Args:
        a: The bundle in the numerators.
        b: The bundle in the denominators.
        device: Where they ran.
        processes: Processes for each thread count.
        blocks: Turns of each contender, in each process, at each batch size.
        margin: What A may be slower by, as a share of B.
        seed: With it, the same images and the same orders are drawn.
        machine: What ran.
        versions: The libraries of the backend.
        clock_mhz: ``min``, ``mean`` and ``max`` of the CPU clock during the timing; None where it cannot be read.
        comparisons: One for each thread count and batch size.
        runs: What each process tells: its order of loading, its warm-ups, its thread settings.
        no_device_time: Why the clock of the GPU was not read, where it was not.
    """

    a: str
    b: str
    device: str
    processes: int
    blocks: int
    margin: float
    seed: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    clock_mhz: Mapping[str, float] | None
    comparisons: Sequence[Comparison]
    runs: Sequence[Mapping[str, Any]]
    no_device_time: str | None


def compare_bundles(
    a: str | Path,
    b: str | Path,
    batches: Sequence[int] = (1, 8, 32),
    *,
    device: str = "cpu",
    threads: Sequence[int] = (1,),
    processes: int = 5,
    blocks: int = 12,
    margin: float = 0.02,
    memory: bool = True,
    public_key: str | Path | None = None,
    seed: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Compare the latency of ``Classifier.logits`` on ready arrays of random images.

    Args:
        a: The bundle in the numerator of the ratio.
        b: The bundle in the denominator; it is loaded twice, for the control.
        batches: Images a call.
        device: Where to run, as in `Classifier.load`.
        threads: CPU threads of each classifier.
        processes: Fresh processes for each thread count, in each of which all three are loaded.
        blocks: Rounds in each process and at each batch size, in which each of the three gets its turn.
        margin: What A may be slower by, as a share of B, and still be called no slower.
        memory: Whether to measure memory as well, in two more processes for each thread count.
        public_key: The key that both must be signed with, as in `Classifier.load`.
        seed: Draws images and orders; by default another one each time.
        progress: Called after each round: ``len(threads) * processes * len(batches) * blocks`` times.

    Raises:
        UsageError: If the bundles take different images, or a number is out of its range.
        ArtifactError: If a bundle cannot be used.
        BenchmarkError: If outputs change while they are timed, or a process dies. There is no result then.
    """
    batches, threads = list(dict.fromkeys(batches)), list(dict.fromkeys(threads))
    for name, values in (("batches", batches), ("threads", threads), ("processes", [processes]), ("blocks", [blocks])):
        if not values or min(values) < 1:
            raise UsageError(f"{name} is {' '.join(map(str, values)) or 'empty'}; expected at least 1")
    if not 0 < margin <= _MOST_MARGIN:
        raise UsageError(f"margin is {margin}; expected a share above 0 and up to {_MOST_MARGIN:g}, such as 0.02")
    if seed is not None and seed < 0:
        raise UsageError(f"seed is {seed}; expected 0 or more")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    what = {
        "a": str(a),
        "b": str(b),
        "device": device,
        "shape": _common_shape(a, b, public_key),
        "public_key": None if public_key is None else str(public_key),
    }
    random = np.random.default_rng(seed)
    jobs = [
        Job(what, count, batches, blocks, int(random.integers(1 << 31))) for count in threads for _ in range(processes)
    ]
    about = machine()
    runs = [run_job(jobs[number], progress=progress) for number in random.permutation(len(jobs))]
    grown = {
        (count, name): _memory(Job(what, count, batches, blocks, seed, only=name))
        for count in threads
        for name in "ab"
        if memory
    }
    comparisons = [
        _compare([run for run in runs if run["threads"] == count], batch, margin, random, grown)
        for count in threads
        for batch in batches
    ]
    loaded = runs[0]["about"]["b"]
    return Report(
        str(a),
        str(b),
        loaded["device"],
        processes,
        blocks,
        margin,
        seed,
        about,
        loaded["versions"],
        _clock([run["clock_mhz"] for run in runs]),
        comparisons,
        [_without_samples(run) for run in runs],
        next((run["no_device_time"] for run in runs if run["no_device_time"]), None),
    )


def _common_shape(a: str | Path, b: str | Path, public_key: str | Path | None) -> tuple[int, ...]:
    first, second = (Manifest.read(bundle, public_key)[0].preprocessing.shape for bundle in (a, b))
    if first != second:
        raise UsageError(
            f"{a} takes images of shape {list(first)} and {b} of {list(second)}; compare models of one size"
        )
    return first


def _memory(job: Job) -> dict[int, Memory]:
    def mib(count: int | None) -> float | None:
        return None if count is None else count / 2**20

    return {
        grown["batch"]: Memory(grown["resident_bytes"] / 2**20, mib(grown["device_bytes"]))
        for grown in run_job(job)["batches"]
    }


def _compare(
    runs: Sequence[Mapping[str, Any]],
    batch: int,
    margin: float,
    random: np.random.Generator,
    grown: Mapping[tuple[int, str], Mapping[int, Memory]],
) -> Comparison:
    threads = runs[0]["threads"]
    timed = [next(found for found in run["batches"] if found["batch"] == batch) for run in runs]
    seconds = _by_contender([one["seconds"] for one in timed])
    found = ratio(seconds["a"], seconds["b"], random)
    control = ratio(seconds["control"], seconds["b"], random)
    a_memory, b_memory = (grown[threads, name][batch] if grown else None for name in "ab")
    return Comparison(
        threads,
        batch,
        latency(seconds["a"], batch, random),
        latency(seconds["b"], batch, random),
        found,
        difference_us(seconds["a"], seconds["b"], random),
        control,
        no_slower(found, control, margin, len(runs)),
        a_memory,
        b_memory,
        sum(not warmed["stable"] for one in timed for warmed in one["warm_up"].values()),
        _milliseconds(seconds),
        _device_time([one["device_seconds"] for one in timed], batch, random),
    )


def _device_time(
    runs: Sequence[Mapping[str, Any] | None], batch: int, random: np.random.Generator
) -> DeviceTime | None:
    told = [run for run in runs if run is not None]
    if len(told) < len(runs):
        return None
    seconds = _by_contender(told)
    return DeviceTime(
        latency(seconds["a"], batch, random),
        latency(seconds["b"], batch, random),
        ratio(seconds["a"], seconds["b"], random),
        ratio(seconds["control"], seconds["b"], random),
        _milliseconds(seconds),
    )


def _by_contender(runs: Sequence[Mapping[str, Any]]) -> dict[str, Samples]:
    return {name: [run[name] for run in runs] for name in _CONTENDERS}


def _milliseconds(seconds: Mapping[str, Samples]) -> dict[str, list[list[list[float]]]]:
    return {
        name: [[[1e3 * call for call in block] for block in process] for process in samples]
        for name, samples in seconds.items()
    }


def _clock(summaries: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Return the summary of summaries of as many readings each."""
    known = [summary for summary in summaries if summary is not None]
    if not known:
        return None
    return {
        "min": min(summary["min"] for summary in known),
        "mean": float(np.mean([summary["mean"] for summary in known])),
        "max": max(summary["max"] for summary in known),
    }


def _without_samples(run: Mapping[str, Any]) -> dict[str, Any]:
    samples = {"seconds", "device_seconds"}
    batches = [{name: value for name, value in found.items() if name not in samples} for found in run["batches"]]
    return {**run, "batches": batches}
