"""Latency of one program against another, measured so that the ratio can be believed: ``docs/benchmarking.md``.

`compare_bundles` is the command ``tnn-runtime bench``. Programs that compare something else bring an `Offer` of
contenders to `serve`, in a process of their own, and start it with `run_job`; `interleave` measures in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_runtime.bench.comparison import Comparison, DeviceTime, Report, compare_bundles
    from tnn_runtime.bench.environment import machine
    from tnn_runtime.bench.errors import BenchmarkError
    from tnn_runtime.bench.intervals import Claim, Estimate, Latency, difference_us, latency, no_slower, ratio
    from tnn_runtime.bench.processes import run_job
    from tnn_runtime.bench.timing import WarmUp, interleave
    from tnn_runtime.bench.worker import Job, Offer, Opened, serve

_MODULES = {
    "comparison": ["Comparison", "DeviceTime", "Report", "compare_bundles"],
    "environment": ["machine"],
    "errors": ["BenchmarkError"],
    "intervals": ["Claim", "Estimate", "Latency", "difference_us", "latency", "no_slower", "ratio"],
    "processes": ["run_job"],
    "timing": ["WarmUp", "interleave"],
    "worker": ["Job", "Offer", "Opened", "serve"],
}

__all__ = [
    "BenchmarkError",
    "Claim",
    "Comparison",
    "DeviceTime",
    "Estimate",
    "Job",
    "Latency",
    "Offer",
    "Opened",
    "Report",
    "WarmUp",
    "compare_bundles",
    "difference_us",
    "interleave",
    "latency",
    "machine",
    "no_slower",
    "ratio",
    "run_job",
    "serve",
]

__getattr__ = lazy_names(__name__, _MODULES)
