"""A bundle against its twin on a GPU: `python examples/benchmark_gpu.py runs/tversky-bundle runs/linear-bundle`.

Prints Markdown tables for ONNX Runtime on CUDA and TensorRT, with and without CUDA graphs, and for eager PyTorch and
``torch.compile`` on a model of the same form. The first comes out before the others are measured: what it costs that
the batch size changes from call to call, as it does in a service, also in one session of ONNX Runtime for all sizes.
Then come the median latency of a call and images per second for each batch size, and the ratio of the two bundles with
its 95% interval, beside that of the second bundle to a copy of itself. Give
bundles in fp16 to measure fp16, which is autocast in PyTorch. Calls go from images in memory of the host to logits in
memory of the host, one at a time; the throughput of several at once is measured apart.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tnn_runtime import Manifest, ProviderUnavailable, UsageError
from tnn_runtime.backends import Backend, BackendOptions, open_backend
from tnn_runtime.backends.batches import bucket_sizes, fill_up
from tnn_runtime.backends.onnxruntime import open_session
from tnn_runtime.bench import interleave, machine
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.bundle.storage import write_json
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import ModelConfig, build_model

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
THROUGHPUT_SECONDS = 1.0
Call = Callable[[Any], Any]


@dataclass(frozen=True)
class Contender:
    """One way to run a bundle.

    Args:
        device: Where.
        graphs: Whether CUDA graphs are recorded.
        torch: How PyTorch runs it, if it does: ``"eager"`` or ``"compile"``.
        bare: Whether it is ONNX Runtime as it comes, with one session for all batch sizes.
    """

    device: str
    graphs: bool = False
    torch: str | None = None
    bare: bool = False

    def __str__(self) -> str:
        how = f"torch {self.torch} on " if self.torch else "one session on " if self.bare else ""
        return how + self.device + (" + graphs" if self.graphs else "")

    @contextmanager
    def opened(self, bundle: Path, batches: Sequence[int]) -> Iterator[tuple[Call, Backend | None]]:
        """Open a bundle, and run every batch size once."""
        opened = open_bundle(bundle)
        manifest = opened.manifest
        if self.torch:
            call = eager(manifest, self.device, compiled=self.torch == "compile")
            backend = None
        elif self.bare:
            call = partial(bare, open_session(opened.contents[ONNX_FILE], self.device, threads=1))
            backend = None
        else:
            options = BackendOptions(max_batch_size=max(batches), cuda_graphs=self.graphs)
            backend, _ = open_backend(opened, self.device, options)
            call = partial(logits, backend)
        try:
            for batch in batches:
                call(np.zeros((batch, *manifest.preprocessing.shape), np.uint8))
            yield call, backend
        finally:
            if backend is not None:
                backend.close()


def logits(backend: Backend, images: Any) -> Any:
    """Return logits for as many images as there are, as `Classifier` does."""
    return backend.run(fill_up(images, backend.batch_sizes)).logits[: len(images)]


def bare(session: Any, images: Any) -> Any:
    """Return the logits of a session of ONNX Runtime."""
    return session.run(["logits"], {"images": images})[0]


def alternate(contender: Contender, bundle: Path, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return the milliseconds of a call of each batch size, on average: after one of the same size, and of another."""
    random = np.random.default_rng(0)
    shape = Manifest.read(bundle)[0].preprocessing.shape
    inputs = [random.integers(0, 256, (batch, *shape), dtype=np.uint8) for batch in batches]
    with contender.opened(bundle, batches) as (call, _):

        def medians(order: Sequence[Any]) -> float:
            times: dict[int, list[float]] = {}
            for images in order:
                started = perf_counter()
                call(images)
                times.setdefault(len(images), []).append(perf_counter() - started)
            return 1e3 * float(np.mean([np.median(found[1:]) for found in times.values()]))

        same = medians([images for images in inputs for _ in range(rounds)])
        alternating = medians(inputs * rounds)
    return {"contender": str(contender), "same_ms": same, "alternating_ms": alternating}


def eager(manifest: Manifest, device: str, compiled: bool) -> Call:
    """Return a call of an untrained PyTorch model of the form that a bundle has, from uint8 to logits on the host."""
    model: torch.nn.Module = build_model(decode(ModelConfig, manifest.model, "model")).eval().to(device)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # one program for each batch size
        mode = "reduce-overhead" if device.startswith("cuda") else "default"
        model = torch.compile(model, mode=mode, dynamic=False)  # type: ignore[assignment]
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    mean, std = (torch.tensor(values, device=device) for values in normalisation(manifest))
    cast: Any = contextlib.nullcontext
    if manifest.precision in types:
        cast = partial(torch.autocast, device.partition(":")[0], types[manifest.precision])

    def call(images: Any) -> Any:
        with torch.inference_mode(), cast():
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
            return model((x - mean) / std).float().cpu().numpy()

    return call


def normalisation(manifest: Manifest) -> tuple[list[Any], list[Any]]:
    """Return mean and standard deviation of raw pixels, shaped to broadcast over ``[N, C, H, W]``."""
    preprocessing = manifest.preprocessing
    return tuple([[[255 * value]] for value in values] for values in (preprocessing.mean, preprocessing.std))  # type: ignore[return-value]


def compare(
    contender: Contender,
    bundles: tuple[Path, Path],
    batches: Sequence[int],
    blocks: int,
    progress: Callable[[], object],
) -> list[dict[str, Any]]:
    """Return for each batch size the latencies of both bundles in milliseconds, their ratio, and the throughput."""
    random = np.random.default_rng(0)
    shape = Manifest.read(bundles[0])[0].preprocessing.shape
    rows = []
    with contextlib.ExitStack() as stack:
        (a, _), (b, _), (control, _) = (
            stack.enter_context(contender.opened(bundle, batches)) for bundle in (*bundles, bundles[1])
        )
        for batch in batches:
            inputs = [random.integers(0, 256, (batch, *shape), dtype=np.uint8) for _ in range(4)]
            samples = interleave({"a": a, "b": b, "control": control}, inputs, blocks, random, progress)
            rows.append(
                {
                    "contender": str(contender),
                    "batch": batch,
                    "a_ms": 1e3 * float(np.median(np.concatenate(samples["a"]))),
                    "b_ms": 1e3 * float(np.median(np.concatenate(samples["b"]))),
                    "ratio": ratio(samples["a"], samples["b"], random),
                    "control": ratio(samples["control"], samples["b"], random),
                    "images_per_second": throughput(a, inputs, 1 if contender.torch else 4),
                    "samples_s": samples,
                }
            )
    return rows


def ratio(numerator: list[list[float]], denominator: list[list[float]], random: np.random.Generator) -> list[float]:
    """Return the geometric mean over blocks of the ratio of their medians, and its 95% bootstrap interval."""
    logs = np.log(np.median(numerator, axis=1) / np.median(denominator, axis=1))
    drawn = random.choice(logs, (2000, len(logs))).mean(axis=1)
    return [float(value) for value in np.exp([logs.mean(), *np.percentile(drawn, [2.5, 97.5])])]


def throughput(call: Call, inputs: Sequence[Any], threads: int) -> float:
    """Return images per second while so many threads call at once."""
    started = perf_counter()

    def work(turn: int) -> int:
        done = 0
        while perf_counter() - started < THROUGHPUT_SECONDS:
            call(inputs[(turn + done) % len(inputs)])
            done += 1
        return done

    if threads == 1:  # the graphs of torch.compile belong to their thread
        calls = work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            calls = sum(pool.map(work, range(threads)))
    return calls * len(inputs[0]) / (perf_counter() - started)


def contenders(devices: Sequence[str], with_torch: bool) -> list[Contender]:
    """Return all ways to run a bundle on these devices."""
    found = []
    for device in devices:
        found.append(Contender(device))
        if device != "cpu":
            found.append(Contender(device, graphs=True))
    first = devices[0].replace("tensorrt", "cuda")
    return found + ([Contender(first, torch=how) for how in ("eager", "compile")] if with_torch else [])


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("benchmark_gpu", __doc__ or "")
    parser.add_argument("a", type=Path, help="bundle, the numerator of the ratio")
    parser.add_argument("b", type=Path, help="bundle, the denominator")
    parser.add_argument("--devices", nargs="+", default=["cuda", "tensorrt"], help="as in Classifier.load")
    parser.add_argument("--batch", nargs="+", type=positive_int, default=list(BATCHES), help="images a call")
    parser.add_argument("--blocks", type=positive_int, default=20, help="rounds in which each takes its turn")
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch")
    parser.add_argument("--json", type=Path, help="file for all samples")
    options = parser.parse_args(arguments)
    if options.json:
        check_file(options.json, "--json")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    precisions = {Manifest.read(bundle)[0].precision for bundle in (options.a, options.b)}
    if len(precisions) > 1:
        raise UsageError(f"the bundles are in {' and '.join(sorted(precisions))}; expected one precision")
    about = {**machine(), "torch": torch.__version__, "precision": precisions.pop()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    alternating = alternations(options.devices, options.a, options.batch, options.blocks)
    rows: list[dict[str, Any]] = []
    for contender in contenders(options.devices, not options.no_torch):
        with tqdm(total=len(options.batch) * options.blocks, desc=str(contender), disable=None, leave=False) as bar:
            try:
                rows += compare(contender, (options.a, options.b), options.batch, options.blocks, bar.update)
            except ProviderUnavailable as error:
                if contender.device == options.devices[0]:
                    raise
                print(f"{contender} is left out: {error}", file=sys.stderr)
    for title, cell in TABLES.items():
        print(f"\n{title}:\n\n{table(rows, options.batch, cell)}")
    if options.json:
        write_json(options.json, {"about": about, "alternating": alternating, "rows": rows})


def alternations(devices: Sequence[str], bundle: Path, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure what changing batch sizes cost on each device, and print it at once."""
    bounds = Manifest.read(bundle)[0].batch
    sizes = [size for size in bucket_sizes(bounds, max(batches)) if size in batches] or list(batches)
    print(f"\nMilliseconds a call, mean of the medians of batches of {', '.join(map(str, sizes))}:\n")
    print("| | one size after the other | sizes alternate | ratio |\n|---|---|---|---|")
    rows = []
    alone = [Contender(device, bare=True) for device in devices if not device.startswith("tensorrt")]
    for contender in [*alone, *contenders(devices, with_torch=False)]:
        try:
            row = alternate(contender, bundle, sizes, max(rounds, 5))
        except ProviderUnavailable as error:
            if contender.device == devices[0]:
                raise
            print(f"{contender} is left out: {error}", file=sys.stderr)
            continue
        same, alternating = row["same_ms"], row["alternating_ms"]
        print(f"| {contender} | {same:.3f} | {alternating:.3f} | {alternating / same:.2f} |", flush=True)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]], batches: Sequence[int], cell: Callable[[dict[str, Any]], str]) -> str:
    """Return a table with a row for each contender and a column for each batch size."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    found = {(row["contender"], row["batch"]): cell(row) for row in rows}
    lines = [f"| | {' | '.join(map(str, batches))} |", f"|{'---|' * (len(batches) + 1)}"]
    lines += [f"| {name} | {' | '.join(found[name, batch] for batch in batches)} |" for name in names]
    return "\n".join(lines)


def _estimate(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "Median latency of the first bundle in milliseconds, by batch": lambda row: f"{row['a_ms']:.3f}",
    "Median latency of the second": lambda row: f"{row['b_ms']:.3f}",
    "First over second, 95% interval, and the control": lambda row: (
        f"{_estimate(row['ratio'])}; {_estimate(row['control'])}"
    ),
    "Images per second of the first, several calls at once": lambda row: f"{row['images_per_second']:.0f}",
}


if __name__ == "__main__":
    sys.exit(run("benchmark_gpu", command))
