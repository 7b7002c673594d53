"""Latency of one program against another, measured so that the ratio can be believed: ``docs/benchmarking.md``.

`compare_bundles` is the command ``tnn-runtime bench``. Programs that compare something else bring an `Offer` of
contenders to `serve`, in a process of their own, and start it with `run_job`; `interleave` measures in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import attach

if TYPE_CHECKING:
    from tnn_runtime.bench.comparison import Comparison as Comparison
    from tnn_runtime.bench.comparison import DeviceTime as DeviceTime
    from tnn_runtime.bench.comparison import Report as Report
    from tnn_runtime.bench.comparison import compare_bundles as compare_bundles
    from tnn_runtime.bench.environment import machine as machine
    from tnn_runtime.bench.errors import BenchmarkError as BenchmarkError
    from tnn_runtime.bench.intervals import Claim as Claim
    from tnn_runtime.bench.intervals import Estimate as Estimate
    from tnn_runtime.bench.intervals import Latency as Latency
    from tnn_runtime.bench.intervals import difference_us as difference_us
    from tnn_runtime.bench.intervals import latency as latency
    from tnn_runtime.bench.intervals import no_slower as no_slower
    from tnn_runtime.bench.intervals import ratio as ratio
    from tnn_runtime.bench.processes import run_job as run_job
    from tnn_runtime.bench.timing import WarmUp as WarmUp
    from tnn_runtime.bench.timing import interleave as interleave
    from tnn_runtime.bench.worker import Job as Job
    from tnn_runtime.bench.worker import Offer as Offer
    from tnn_runtime.bench.worker import Opened as Opened
    from tnn_runtime.bench.worker import serve as serve
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "comparison": ["Comparison", "DeviceTime", "Report", "compare_bundles"],
            "environment": ["machine"],
            "errors": ["BenchmarkError"],
            "intervals": ["Claim", "Estimate", "Latency", "difference_us", "latency", "no_slower", "ratio"],
            "processes": ["run_job"],
            "timing": ["WarmUp", "interleave"],
            "worker": ["Job", "Offer", "Opened", "serve"],
        },
    )
