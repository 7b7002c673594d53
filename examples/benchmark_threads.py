"""Why models get slow together: threads that spin, in this process or another, take the cores of the next model.

    python examples/benchmark_threads.py runs/pair/tversky runs/pair/linear --threads 1 2 4

Both bundles, and a second copy of B as the control, are open in one process. They are called in turns of one call
each, where the threads of the one before may still spin, and in blocks of calls, where every model has the cores to
itself after its first call; with threads that sleep when they are idle, and with threads that spin.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime import Classifier
from tnn_runtime.bench import machine
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.queue.cores import usable_cores


def medians_ms(
    models: Sequence[Classifier], images: NDArray[np.uint8], rounds: int, calls: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the median milliseconds of a call of each model; each round gives all of them ``calls`` calls in a row."""
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for index in random.permutation(len(models)):
            for _ in range(calls):
                started = time.perf_counter()
                models[index].logits(images)
                seconds[index].append(time.perf_counter() - started)
    return 1e3 * np.median(seconds, axis=1)


def command(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = Parser("benchmark_threads", (__doc__ or "").splitlines()[0])
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--threads", type=positive_int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("--batch", type=positive_int, default=1)
    parser.add_argument("--calls", type=positive_int, default=30, help="calls that each median is of")
    options: argparse.Namespace = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    print(f"{machine()['cpu']}, {usable_cores()} cores, batch {options.batch}")
    print(f"{'threads':>7} {'idle threads':>12} {'turns of':>9} {'A ms':>8} {'B ms':>8} {'A/B':>6} {'control/B':>9}")
    for threads in options.threads:
        for spin in (False, True):
            with ExitStack() as stack:
                load = [options.a, options.b, options.b]
                models = [
                    stack.enter_context(Classifier.load(path, "cpu", threads=threads, spin=spin)) for path in load
                ]
                shape = models[0].info["input_shape"]
                images = random.integers(0, 256, (options.batch, *shape), dtype=np.uint8)
                medians_ms(models, images, 1, 5, random)
                for rounds, calls, name in ((options.calls, 1, "1 call"), (1, options.calls, f"{options.calls} calls")):
                    a, b, control = medians_ms(models, images, rounds, calls, random)
                    idle = "spin" if spin else "sleep"
                    print(
                        f"{threads:7} {idle:>12} {name:>9} {a:8.2f} {b:8.2f} {a / b:6.3f} {control / b:9.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    sys.exit(run("benchmark_threads", command))
