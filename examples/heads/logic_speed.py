"""A logic head on pixels, compiled, against ONNX Runtime: `python examples/heads/logic_speed.py BUNDLE --data mnist`.

Three contenders take turns in one process, with one thread each: the compiled program of the bundle as the runtime
runs it, a second copy of it as the control, and ONNX Runtime on the graph of the same bundle. With ``--torchlogix
PYTHON``, a Python that has torchlogix, the same circuit as torchlogix compiles it takes its turns, too, in a process of
its own that reads its own clock; it gets bits, and leaves comparing pixels with thresholds to others. First of all,
every contender must give the same logits, ours and ONNX Runtime's bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime import UsageError
from tnn_runtime.backends import Backend, BackendOptions, open_backend
from tnn_runtime.backends.onnxruntime import open_session
from tnn_runtime.bench import latency, machine, ratio
from tnn_runtime.bench.report import columns
from tnn_runtime.bench.timing import TimedCall, by_wall_clock, take_turns
from tnn_runtime.bundle.manifest import HEAD_FILE, ONNX_FILE
from tnn_runtime.bundle.opened import Bundle, open_bundle
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import DataConfig, load_data

OURS, CONTROL, ORT, OTHER = "compiled", "control", "onnxruntime", "torchlogix"
_AT_ONCE = 1000


def outputs(run_batch: Callable[[NDArray[np.uint8]], Any], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return logits and embeddings of images, run in parts."""
    found = [run_batch(images[start : start + _AT_ONCE])[:2] for start in range(0, len(images), _AT_ONCE)]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def same(backend: Backend, session: Any, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits and embeddings, which must be the same bits from the program and from ONNX Runtime.

    Raises:
        UsageError: If they are not.
    """
    ours = outputs(backend.run, images)
    theirs = outputs(lambda batch: session.run(["logits", "embedding"], {"images": batch}), images)
    if not all(
        np.array_equal(one.view(np.uint32), other.view(np.uint32)) for one, other in zip(ours, theirs, strict=True)
    ):
        raise UsageError("the compiled program and ONNX Runtime differ; report this")
    return ours[0], ours[1]


@contextlib.contextmanager
def torchlogix(
    python: str, bundle: Bundle, embeddings: NDArray[np.float32], pack: int, opt: int
) -> Iterator[tuple[TimedCall, dict[str, Any]]]:
    """Yield a call that runs the circuit in torchlogix on so many images, and what it tells of itself."""
    with tempfile.TemporaryDirectory() as folder:
        head, bits = Path(folder, "head.npz"), Path(folder, "bits.npy")
        head.write_bytes(bundle.contents[HEAD_FILE])
        with np.load(head) as arrays:
            np.save(bits, (embeddings[:, :, None] > arrays["thresholds"]).reshape(len(embeddings), -1))
        program = Path(__file__).with_name("torchlogix_net.py")
        classes = len(bundle.manifest.class_names)
        command = [python, "-W", "ignore", program, head, bits, classes, pack, opt]
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        told = process.stdout.readline()
        if not told:
            raise UsageError(f"{python} does not run torchlogix; see above")

        def call(images: NDArray[np.uint8]) -> tuple[float, Any]:
            process.stdin.write(f"{len(images)}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return answer["seconds"], np.array(answer["logits"], np.float32)

        try:
            yield call, json.loads(told)
        finally:
            process.stdin.close()
            process.wait()


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    options = _options(arguments)
    data = load_data(DataConfig(options.data, root=options.data_root))
    bundle = open_bundle(options.bundle)
    images = np.ascontiguousarray(data.test.pixels)
    backends = [open_backend(bundle, "compiled", BackendOptions(threads=1))[0] for _ in range(2)]
    session = open_session(bundle.contents[ONNX_FILE], "cpu", 1)
    logits, embeddings = same(backends[0], session, images)
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (len(images), *images.shape[1:]), dtype=np.uint8)
    same(backends[0], session, noise)
    print(f"{len(images):,} images and as many of random pixels: logits and embeddings are the same bits")
    accuracy = (logits.argmax(1) == data.test.labels).mean()
    print(f"test accuracy {accuracy:.4f}; {backends[0].details['gates']:,} gates after simplification")
    _compiling(bundle)
    calls: dict[str, TimedCall] = by_wall_clock(
        {
            OURS: backends[0].run,
            CONTROL: backends[1].run,
            ORT: lambda batch: session.run(["logits", "embedding"], {"images": batch}),
        }
    )
    with contextlib.ExitStack() as opened:
        for pack, opt in options.torchlogix_options if options.torchlogix else ():
            call, about = opened.enter_context(torchlogix(options.torchlogix, bundle, embeddings, pack, opt))
            _, found = call(images)
            np.testing.assert_allclose(found, logits, rtol=1e-5)
            name = f"{OTHER} pack {pack}, opt {opt}"
            print(f"{name}: {about['torchlogix']} gives the same logits; it compiled for {about['compile_s']:.1f} s")
            calls[name] = call
        print(machine()["cpu"])
        for batch in options.batch:
            _measure(calls, images[:batch], options.blocks, random)


def _compiling(bundle: Bundle) -> None:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        open_backend(bundle, "compiled", BackendOptions(cache_dir=Path(folder)))
        print(f"simplified, written and compiled in {time.perf_counter() - started:.1f} s")


def _measure(calls: dict[str, TimedCall], images: NDArray[np.uint8], blocks: int, random: np.random.Generator) -> None:
    for call in calls.values():
        for _ in range(3):
            call(images)
    repeats = max(1, min(20, round(0.05 / max(call(images)[0] for call in calls.values()))))
    seconds = take_turns(calls, [images], blocks, repeats, random)
    rows = []
    for name, samples in seconds.items():
        found = latency([samples], len(images), random)
        compared = "" if name == OURS else ratio([samples], [seconds[OURS]], random).text()
        rows.append([str(len(images)), name, found.p50.text(), f"{found.images_per_second:,.0f}", compared])
    print(columns(["batch", "contender", "p50 ms (95% interval)", "images/s", "its time / compiled's"], rows))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("logic_speed", __doc__ or "")
    parser.add_argument("bundle", type=Path, help="bundle with the backbone pixels and the head logic")
    parser.add_argument("--data", default="digits", help="data set, whose test images are run")
    parser.add_argument("--data-root", default="data", help="where it lies")
    parser.add_argument(
        "--batch", type=positive_int, nargs="+", default=[1, 64, 1024], metavar="N", help="images a call"
    )
    parser.add_argument("--blocks", type=positive_int, default=20, metavar="N", help="turns that each gets")
    parser.add_argument("--torchlogix", metavar="PYTHON", help="a Python that has torchlogix")
    parser.set_defaults(torchlogix_options=[(0, 1), (64, 3)])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run("logic_speed", command))
