"""The command ``tnn-runtime bench``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tnn_runtime.bench.comparison import compare_bundles
from tnn_runtime.bench.plots import require_matplotlib, write_plots
from tnn_runtime.bench.report import table, write_report
from tnn_runtime.bundle.outputs import check_file, check_folder
from tnn_runtime.console import Parser, positive_int, say
from tnn_runtime.queue.cores import usable_cores

__all__ = ["add_bench"]

_EPILOG = """examples:
  tnn-runtime bench runs/demo/bundle-tversky runs/demo/bundle-linear
  tnn-runtime bench runs/demo/bundle-tversky runs/demo/bundle-linear --batch 1 32 --threads 1 --margin 0.02 \\
      --json bench.json --plots plots/

Several fresh processes load A, B, and a second copy of B as the control, in random order; in each, the three take turns
in random order, block by block, and what they answer is checked while they are timed. The interval of a ratio tells
what repeating all of this would give. "A is no slower than B" is said only if the ratio is below 1 + MARGIN with 95%
confidence, and if the control shows that this machine can tell; docs/benchmarking.md says how to read it."""


def add_bench(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Add the command, and return its parser."""
    parser = commands.add_parser(
        "bench",
        help="time one bundle against another",
        description="Time bundle A against bundle B: interleaved, in fresh processes, with a second copy of B as the "
        "control.",
        epilog=_EPILOG,
    )
    parser.add_argument("a", type=Path, help="bundle in the numerator of the ratio")
    parser.add_argument("b", type=Path, help="bundle in the denominator")
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 8, 32], metavar="N", help="images a call")
    parser.add_argument(
        "--threads", type=positive_int, nargs="+", default=[1, usable_cores()], metavar="N", help="CPU threads of each"
    )
    parser.add_argument("--device", default="cpu", help="cpu, compiled, cuda, cuda:N, tensorrt or tensorrt:N")
    parser.add_argument(
        "--processes", type=positive_int, default=5, metavar="N", help="fresh processes for each thread count"
    )
    parser.add_argument(
        "--blocks",
        type=positive_int,
        default=12,
        metavar="N",
        help="turns that each gets in a process, at each batch size",
    )
    parser.add_argument("--margin", type=float, default=0.02, help="what A may be slower by, as a share of B")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="draws images and orders; another one each time if not given"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, raw samples included")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw latency.png and ratio.png")
    parser.set_defaults(run=_bench)
    return parser


def _bench(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    if options.json is not None:
        check_file(options.json, "--json")
    if options.plots is not None:
        check_folder(options.plots, "--plots")
        require_matplotlib()
    total = len(set(options.threads)) * len(set(options.batch)) * options.processes * options.blocks
    with tqdm(total=max(total, 0), desc="timing", unit="block", disable=None, delay=2) as progress:
        report = compare_bundles(
            options.a,
            options.b,
            options.batch,
            device=options.device,
            threads=options.threads,
            processes=options.processes,
            blocks=options.blocks,
            margin=options.margin,
            public_key=options.public_key,
            seed=options.seed,
            progress=progress.update,
        )
    say(*table(report).split("\n"))
    if options.json is not None:
        write_report(report, options.json)
    if options.plots is not None:
        say("", *(f"wrote {path}" for path in write_plots(report, options.plots)))
