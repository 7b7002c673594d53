"""Ours against others on the same model: `python examples/benchmark_engines.py runs/demo/run-tversky/best`.

Times ``Classifier.logits`` against bare ONNX Runtime on the model of the same bundle, against eager PyTorch and
``torch.compile`` on the checkpoint that it was exported from, and against OpenVINO, all on the CPU. It does as
``tnn-runtime bench``: in fresh processes, by turns, on distinct images, with a second copy of ours as the control. All
must give the same logits before they are timed, and go on giving them while they are.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tnn_runtime import Classifier, Manifest, UsageError
from tnn_runtime.backends.onnxruntime import open_session
from tnn_runtime.bench import Estimate, Job, Latency, Offer, Opened, latency, machine, ratio, run_job, serve
from tnn_runtime.bench.report import columns
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.bundle.storage import write_json
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.queue.cores import usable_cores

OURS, CONTROL = "ours", "control"
SERVE = "--serve"
TOLERANCE = 1e-3
"""Engines order their sums differently: this share of the largest logit."""


def ours(job: Job) -> Opened:
    """Load the bundle with the runtime."""
    classifier = Classifier.load(
        job.what["bundle"], "cpu", threads=job.threads, max_batch_size=max(job.batches), self_check=False
    )
    return Opened(classifier.logits, {"onnxruntime": classifier.info["versions"]["onnxruntime"]})


def onnxruntime(job: Job) -> Opened:
    """Open the model of the bundle in a session with the settings of the runtime, and nothing else."""
    import onnxruntime as ort

    session = open_session(str(Path(job.what["bundle"]) / ONNX_FILE), "cpu", job.threads)
    return Opened(lambda images: session.run(["logits"], {"images": images})[0], {"onnxruntime": ort.__version__})


def eager(job: Job) -> Opened:
    """Load the checkpoint in PyTorch."""
    return _torch(job, compiled=False)


def compiled(job: Job) -> Opened:
    """Load the checkpoint in PyTorch and compile it, for each batch size anew."""
    return _torch(job, compiled=True)


def _torch(job: Job, *, compiled: bool) -> Opened:
    # Its pool of compilers would go on working while others are timed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch

    from tnn_train import load_checkpoint
    from tnn_train.model.image_model import Normalize

    torch.set_num_threads(job.threads)
    checkpoint = load_checkpoint(job.what["checkpoint"])
    model: Any = torch.nn.Sequential(Normalize(checkpoint.preprocessing), checkpoint.model).eval()
    if compiled:
        model = torch.compile(model, dynamic=False)

    def call(images: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return Opened(call, {"torch": torch.__version__})


def openvino(job: Job) -> Opened:
    """Compile the model of the bundle with OpenVINO, for each batch size anew."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    requests: dict[int, Any] = {}

    def call(images: Any) -> Any:
        if len(images) not in requests:
            model = core.read_model(Path(job.what["bundle"]) / ONNX_FILE)
            model.reshape({"images": list(images.shape)})
            requests[len(images)] = core.compile_model(model, "CPU", settings).create_infer_request()
        return requests[len(images)].infer({"images": images})["logits"]

    return Opened(call, {"openvino": ov.__version__})


ENGINES: Mapping[str, tuple[Callable[[Job], Opened], str]] = {
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "eager": (eager, "torch"),
    "compile": (compiled, "torch"),
    "openvino": (openvino, "openvino"),
}
"""What ours is compared with, and the package that it needs."""


@dataclass(frozen=True)
class Row:
    """One engine at one thread count and batch size.

    Args:
        engine: Its name.
        threads: CPU threads a call.
        batch: Images a call.
        latency: Its latencies.
        ours_over_it: Latency of ours over its; for the control, of the second copy over ours; for ours, None.
        samples_ms: Milliseconds by process, block and call.
    """

    engine: str
    threads: int
    batch: int
    latency: Latency
    ours_over_it: Estimate | None
    samples_ms: list[list[list[float]]]


def offer(job: Job) -> Offer:
    """Offer ours, a second copy of it, and the engines of a job."""
    openers = {OURS: ours, CONTROL: ours, **{name: ENGINES[name][0] for name in job.what["against"]}}

    def opener(name: str) -> Callable[[], Opened]:
        return lambda: openers[name](job)

    return Offer({name: opener(name) for name in openers}, tuple(job.what["shape"]), tuple(openers), TOLERANCE)


def measure(
    what: Mapping[str, Any],
    threads: Sequence[int],
    batches: Sequence[int],
    processes: int,
    blocks: int,
    progress: Callable[[], object],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return a row for each engine, thread count and batch size, and what the processes tell of themselves."""
    random = np.random.default_rng()
    jobs = [
        Job(what, count, batches, blocks, int(random.integers(1 << 31))) for count in threads for _ in range(processes)
    ]
    program = [str(Path(__file__).resolve()), SERVE]
    runs = [run_job(jobs[number], program, progress) for number in random.permutation(len(jobs))]
    rows = []
    for count in threads:
        for batch in batches:
            timed = [one for found in runs if found["threads"] == count for one in found["batches"]]
            seconds = {
                name: [one["seconds"][name] for one in timed if one["batch"] == batch] for name in timed[0]["seconds"]
            }
            rows += [_row(name, count, batch, seconds, random) for name in (OURS, CONTROL, *what["against"])]
    return rows, [{name: found[name] for name in ("threads", "load_order", "about", "clock_mhz")} for found in runs]


def _row(
    name: str, threads: int, batch: int, seconds: Mapping[str, list[list[list[float]]]], random: np.random.Generator
) -> Row:
    pair = {OURS: None, CONTROL: (CONTROL, OURS)}.get(name, (OURS, name))
    found = None if pair is None else ratio(seconds[pair[0]], seconds[pair[1]], random)
    samples = [[[1e3 * call for call in block] for block in process] for process in seconds[name]]
    return Row(name, threads, batch, latency(seconds[name], batch, random), found, samples)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    heads = ["threads", "batch", "engine", "p50 ms (95% interval)", "p90 ms", "p99 ms", "images/s", "ours / it"]
    return columns(
        heads,
        [
            [
                str(row.threads),
                str(row.batch),
                row.engine,
                row.latency.p50.text(),
                f"{row.latency.p90.value:.3f}",
                f"{row.latency.p99.value:.3f}",
                f"{row.latency.images_per_second:.1f}",
                "" if row.ours_over_it is None else row.ours_over_it.text(),
            ]
            for row in rows
        ],
    )


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    options = _options(arguments)
    installed = [name for name in ENGINES if importlib.util.find_spec(ENGINES[name][1]) is not None]
    missing = {name: package for name, (_, package) in ENGINES.items() if name not in installed}
    for name, package in missing.items():
        if name in (options.against or ()):
            raise UsageError(f"{name} needs {package}, which is not installed; run: pip install {package}")
    against = list(dict.fromkeys(options.against or installed))
    counts, batches = list(dict.fromkeys(options.threads)), list(dict.fromkeys(options.batch))
    with _bundle(options) as bundle:
        what = {
            "checkpoint": str(options.checkpoint),
            "bundle": str(bundle),
            "against": against,
            "shape": Manifest.read(bundle)[0].preprocessing.shape,
        }
        total = len(counts) * options.processes * len(batches) * options.blocks
        with tqdm(total=total, desc="timing", unit="block", disable=None) as progress:
            rows, runs = measure(what, counts, batches, options.processes, options.blocks, progress.update)
    versions = {key: value for one in runs[0]["about"].values() for key, value in one.items()}
    about = machine()
    print(f"{about['cpu']}, " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{options.processes} processes for each thread count, {options.blocks} blocks in each\n")
    print(table(rows))
    for name, package in missing.items():
        print(f"{name} was left out: {package} is not installed; run: pip install {package}")
    if options.json is not None:
        content = {"machine": about, "versions": versions, "missing": list(missing), "runs": runs}
        write_json(options.json, {**content, "rows": [asdict(row) for row in rows]})


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("benchmark_engines", __doc__ or "")
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder that tnn-train wrote")
    parser.add_argument("--bundle", type=Path, help="its bundle; if not given, it is exported for the purpose")
    parser.add_argument(
        "--against", nargs="+", choices=list(ENGINES), help="what to compare with, all that is installed if not given"
    )
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 8, 32], metavar="N", help="images a call")
    parser.add_argument(
        "--threads", type=positive_int, nargs="+", default=[1, usable_cores()], metavar="N", help="CPU threads"
    )
    parser.add_argument(
        "--processes", type=positive_int, default=3, metavar="N", help="fresh processes for each thread count"
    )
    parser.add_argument(
        "--blocks", type=positive_int, default=10, metavar="N", help="turns that each gets in a process"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, raw samples included")
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_file(options.json, "--json")
    return options


@contextlib.contextmanager
def _bundle(options: argparse.Namespace) -> Iterator[Path]:
    """Give the bundle, exported into a temporary folder if there is none."""
    if options.bundle is not None:
        yield options.bundle
        return
    from tnn_export import export_bundle

    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(options.checkpoint, bundle, formats=["onnx"])
        yield bundle


if __name__ == "__main__":
    sys.exit(serve(offer) if sys.argv[1:] == [SERVE] else run("benchmark_engines", command))
