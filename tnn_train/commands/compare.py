"""The command ``tnn-train compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.console import Parser, say
from tnn_train.report.compare import compare_runs, write_comparison

__all__ = ["command"]

_EPILOG = """examples:
  tnn-train compare runs/mnist-tversky-* runs/mnist-linear-*
  tnn-train compare runs/linear runs/tversky --out comparison.html

Runs that differ in nothing but their seeds are one group. The first group is the one that the others are compared with,
seed by seed. A single seed has no interval: (-). Neither have seeds that gave the same to all digits: (all equal)."""


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train compare``."""
    parser = Parser(
        "tnn-train compare", "Compare finished runs: means and 95% intervals over seeds, paired differences.", _EPILOG
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder that tnn-train has made")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="also write a page with tables and curves")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE.html")
    options = parser.parse_args(arguments)
    if options.out is not None:
        check_file(options.out, "--out", overwrite=options.overwrite)
    comparison = compare_runs(options.runs)
    say(*comparison.table().split("\n"))
    if options.out is not None:
        write_comparison(options.out, comparison)
        say("", f"open in a browser: {options.out}")
