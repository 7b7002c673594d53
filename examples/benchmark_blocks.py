"""How many prototypes a pairwise sum should take at a time: `python examples/benchmark_blocks.py --threads 1`.

Two constants of this project are chosen by it: the values in a block of the lowered head, measured in ONNX Runtime, and
the prototypes in a block of the eager soft minimum, measured in a training step.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tnn_export import lower_head
from tnn_export.lowering.tversky import head as tversky
from tnn_runtime.backends.onnxruntime import open_session
from tnn_runtime.bench import interleave, machine
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads.tversky import similarity

EMBEDDING = 64
SIZES = ((1024, 1011), (512, 100), (64, 10))
"""Features and prototypes."""
BATCHES = (1, 8, 64)
LOWERED = (1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 17, 1 << 20)
EAGER = (1, 4, 16, 64, 256)


def lowered_blocks(features: int, prototypes: int, threads: int, rounds: int) -> list[str]:
    """Return table rows: milliseconds of the lowered head for each number of values in a block."""
    torch.manual_seed(0)
    lowered = TverskyHead(EMBEDDING, prototypes, TverskyConfig(features, intersection="min"))
    calls: dict[str, Callable[[Any], object]] = {}
    chosen = tversky.BLOCK_VALUES
    with tempfile.TemporaryDirectory() as folder:
        for values in tqdm(LOWERED, desc=f"exporting {prototypes} x {features}", disable=None, leave=False):
            tversky.BLOCK_VALUES = values
            path = Path(folder) / f"{values}.onnx"
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    lower_head(lowered),
                    (torch.zeros(2, EMBEDDING),),
                    str(path),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                    input_names=["x"],
                    verbose=False,
                )
            calls[str(values)] = _call(open_session(str(path), "cpu", threads))
    tversky.BLOCK_VALUES = chosen
    return [
        _row(f"{features} x {prototypes}, batch {batch}", calls, np.zeros((batch, EMBEDDING), np.float32), rounds)
        for batch in BATCHES
    ]


def eager_blocks(features: int, prototypes: int, rounds: int) -> list[str]:
    """Return a table row: milliseconds of a training step of the soft minimum for each number of prototypes."""
    torch.manual_seed(0)
    head = TverskyHead(EMBEDDING, prototypes, TverskyConfig(features, intersection="softmin", difference="ignorematch"))
    chosen = similarity.BLOCK

    def step(block: int) -> Callable[[Any], object]:
        def call(x: Any) -> None:
            similarity.BLOCK = block
            head.zero_grad()
            head(torch.from_numpy(x)).square().mean().backward()

        return call

    calls = {str(block): step(block) for block in EAGER}
    x = np.random.default_rng(0).standard_normal((64, EMBEDDING)).astype(np.float32)
    row = _row(f"{features} x {prototypes}, batch 64", calls, x, rounds)
    similarity.BLOCK = chosen
    return [row]


def _call(session: Any) -> Callable[[Any], object]:
    return lambda x: session.run(None, {"x": x})


def _row(name: str, calls: dict[str, Callable[[Any], object]], x: Any, rounds: int) -> str:
    samples = interleave(calls, [x], rounds, np.random.default_rng(0))
    medians = [1e3 * float(np.median(np.concatenate(turns))) for turns in samples.values()]
    return f"| {name} | {' | '.join(f'{median / min(medians):.2f}' for median in medians)} |"


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("benchmark_blocks", __doc__ or "")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=positive_int, default=10, help="in which each variant gets its turn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = {**machine(), "torch": torch.__version__, "threads": options.threads}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("\nLowered head in ONNX Runtime, time over that of the best, by the values in a block:\n")
    print(f"| features x prototypes | {' | '.join(map(str, LOWERED))} |\n|{'---|' * (len(LOWERED) + 1)}")
    for features, prototypes in SIZES:
        print("\n".join(lowered_blocks(features, prototypes, options.threads, options.rounds)), flush=True)
    print("\nTraining step of the eager soft minimum, time over that of the best, by the prototypes in a block:\n")
    print(f"| features x prototypes | {' | '.join(map(str, EAGER))} |\n|{'---|' * (len(EAGER) + 1)}")
    for features, prototypes in SIZES:
        print("\n".join(eager_blocks(features, prototypes, options.rounds)), flush=True)


if __name__ == "__main__":
    sys.exit(run("benchmark_blocks", command))
