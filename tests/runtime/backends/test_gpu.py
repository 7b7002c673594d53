"""What only a GPU can show: `make test-gpu`. Everything here is tested elsewhere on fakes, too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tnn_export import export_bundle
from tnn_runtime import Classifier, Deployment, ProviderUnavailable, RunError, UsageError
from tnn_runtime.__main__ import main
from tnn_runtime.backends import (
    Backend,
    BackendOptions,
    Device,
    open_backend,
    open_device_timer,
    probe_device,
    providers,
)
from tnn_runtime.backends.cuda import Buffer, Cuda
from tnn_runtime.backends.failures import FATAL
from tnn_runtime.backends.onnxruntime import require_cuda
from tnn_runtime.backends.providers import CPU, CUDA, TENSORRT
from tnn_runtime.backends.tensorrt import tensorrt_problems
from tnn_runtime.backends.weights import shared_weights
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.commands.doctor import examine
from tnn_runtime.engines import build as engines
from tnn_train.training.loop import TrainResult

pytestmark = pytest.mark.gpu

SIZES = (1, 2, 4, 8, 16)
CLOSE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}
"""Largest difference of a logit or an embedding, relative to the largest magnitude of its row, and at least to 1."""


def needs_tensorrt(native: bool) -> None:
    problems = tensorrt_problems() if native else providers.provider_problems(TENSORRT)
    if problems:
        pytest.skip("; ".join(problems))


@pytest.fixture(scope="module")
def by_precision(
    bundles: dict[str, Path], runs: dict[str, TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A Tversky bundle without jumps in each precision."""
    made = {"fp32": bundles["tversky"]}
    for precision in ("fp16", "int8"):
        made[precision] = tmp_path_factory.mktemp(precision) / "bundle"
        export_bundle(runs["tversky"].best, made[precision], formats=("onnx",), precision=precision)
    return made


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def opener(bundle: Path, device: str, **options: Any) -> Iterator[Backend]:
        asked = {"max_batch_size": SIZES[-1], "cache_dir": tmp_path / "engines"} | options
        backend, _ = open_backend(open_bundle(bundle), device, BackendOptions(**asked))
        try:
            yield backend
        finally:
            backend.close()

    return opener


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def assert_close(found: Any, expected: Any, precision: str) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        scale = np.maximum(np.abs(theirs).max(axis=1, keepdims=True), 1)
        assert (np.abs(ours - theirs) / scale).max() <= CLOSE[precision]


DEVICES = ["cuda", "tensorrt"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "tensorrt":
        needs_tensorrt(native=True)
    return str(request.param)


# The same answers as on the CPU


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
@pytest.mark.parametrize("precision", CLOSE)
def test_the_answers_of_the_cpu(
    by_precision: dict[str, Path], opened: Callable[..., Any], device: str, precision: str, graphs: bool
) -> None:
    bundle = by_precision[precision]
    with opened(bundle, "cpu") as cpu, opened(bundle, device, cuda_graphs=graphs) as gpu:
        assert gpu.batch_sizes == SIZES
        for size in SIZES * 2:
            batch = images(size, size)
            assert_close(gpu.run(batch), cpu.run(batch), precision)


@pytest.mark.parametrize("head", ["tversky", "ratio", "linear"])
def test_every_head_gives_its_golden_samples(bundles: dict[str, Path], device: str, head: str, tmp_path: Path) -> None:
    with Classifier.load(bundles[head], device, cache_dir=tmp_path) as classifier:
        assert classifier.info["device"] == f"{device}:0"
        with Classifier.load(bundles[head], "cpu") as cpu:
            batch = images(37)
            assert_close([classifier.logits(batch)], [cpu.logits(batch)], "fp32")


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
def test_threads_get_their_own_answers(
    bundles: dict[str, Path], opened: Callable[..., Any], device: str, graphs: bool
) -> None:
    batches = [images(SIZES[number % len(SIZES)], number) for number in range(400)]
    with opened(bundles["tversky"], device, cuda_graphs=graphs) as backend, ThreadPoolExecutor(8) as pool:
        alone = [backend.run(batch) for batch in batches]
        together = list(pool.map(backend.run, batches))
    for found, expected in zip(together, alone, strict=True):
        assert_close(found, expected, "fp32")
    for one, other in zip(alone[:: len(SIZES)], alone[len(SIZES) :: len(SIZES)], strict=False):
        with pytest.raises(AssertionError):  # an answer of somebody else would be seen
            assert_close(one, other, "fp32")


def test_graphs_change_nothing(bundles: dict[str, Path], opened: Callable[..., Any], device: str) -> None:
    # The same kernels in the same order, so to the last bit; cuDNN may choose others in another session.
    with opened(bundles["tversky"], device) as plain, opened(bundles["tversky"], device, cuda_graphs=True) as recorded:
        for size in SIZES * 3:
            batch = images(size, size + 100)
            assert_close(recorded.run(batch), plain.run(batch), "fp32")
            again = recorded.run(batch)
            assert np.array_equal(again.logits, recorded.run(batch).logits)


def test_a_batch_that_does_not_fit_fails_alone(
    bundles: dict[str, Path], opened: Callable[..., Any], device: str
) -> None:
    with opened(bundles["tversky"], device) as backend:
        with pytest.raises(RunError, match="got a batch of 3"):
            backend.run(images(3))
        assert len(backend.run(images(2)).logits) == 2


def test_a_gpu_that_is_not_there_is_an_error(bundles: dict[str, Path], opened: Callable[..., Any], device: str) -> None:
    with pytest.raises(ProviderUnavailable), opened(bundles["tversky"], f"{device}:99"):
        pass


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
def test_the_clock_of_the_gpu_agrees_with_the_wall(
    bundles: dict[str, Path], device: str, graphs: bool, tmp_path: Path
) -> None:
    bundle = open_bundle(bundles["tversky"])
    options = BackendOptions(max_batch_size=16, cache_dir=tmp_path, cuda_graphs=graphs)
    with open_device_timer(bundle, device, options) as timed, Classifier.load(bundle.folder, "cpu") as cpu:
        for count in (*SIZES, 3) * 3:
            started = time.perf_counter()
            seconds, logits = timed(images(count))
            assert 0 < seconds < time.perf_counter() - started
            assert_close([logits], [cpu.logits(images(count))], "fp32")


def test_the_benchmark_reads_the_clock_of_the_gpu(
    bundles: dict[str, Path], device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [str(bundles[head]) for head in ("tversky", "linear")]
    numbers = ["--batch", "1", "3", "--threads", "1", "--processes", "1", "--blocks", "3"]
    assert main(["bench", *pair, "--device", device, *numbers]) == 0
    printed = capsys.readouterr().out
    assert "GPU time of A, p50 ms" in printed
    assert "was not taken" not in printed


# ONNX Runtime


def test_every_node_is_on_cuda(by_precision: dict[str, Path], opened: Callable[..., Any]) -> None:
    for precision, bundle in by_precision.items():
        with opened(bundle, "cuda") as backend:
            assert backend.details["providers"][0] == CUDA
            assert backend.details["nodes"].keys() == {CUDA}
            assert backend.details["memory"] == "page-locked"
            assert backend.details["weights"].endswith(" shared by all sessions")
            assert backend.details["provider_options"][CUDA]["use_tf32"] == ("1" if precision == "fp16" else "0")
            assert backend.details["provider_options"][CUDA]["device_id"] == "0"


def test_weights_are_on_the_gpu_once() -> None:
    """A convolution of 64 MB, of which four more sessions would take 256 MB."""
    session = onnxruntime.SessionOptions()
    weight = np.zeros((4096, 4096, 1, 1), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4096, 1, 1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    require_cuda("cuda")
    gpu = Cuda(0)
    gpu.use()
    weights = shared_weights(model, "cuda", 0)
    for name, value in weights.items():
        session.add_initializer(name, value)
    providers = [(CUDA, {"arena_extend_strategy": "kSameAsRequested"})]
    feed = {"x": np.ones((1, 4096, 1, 1), np.float32)}
    made, free = [], []
    for _ in range(5):
        made.append(onnxruntime.InferenceSession(model, session, providers=providers))
        assert not made[-1].run(None, feed)[0].any()
        free.append(gpu._call("cudaMemGetInfo")[0])
    assert free[1] - free[-1] < 3 * weight.nbytes / 2


@pytest.mark.parametrize("graphs", [False, True], ids=["no graphs", "graphs"])
def test_a_bundle_is_exchanged_while_the_one_before_serves(
    bundles: dict[str, Path], device: str, graphs: bool, tmp_path: Path
) -> None:
    """What records graphs is not disturbed by what serves, nor that by it."""
    batches = [images(count, count) for count in (1, 3, 16)]
    ended = threading.Event()
    with (
        Deployment(bundles["tversky"], device, cuda_graphs=graphs, max_batch_size=16, cache_dir=tmp_path) as deployment,
        ThreadPoolExecutor(4) as pool,
    ):
        alone = [deployment.logits(batch) for batch in batches]

        def serve() -> int:
            count = 0
            while not ended.is_set():
                for batch, expected in zip(batches, alone, strict=True):
                    assert_close([deployment.logits(batch)], [expected], "fp32")
                count += 1
            return count

        serving = [pool.submit(serve) for _ in range(4)]
        try:
            for _ in range(5):
                assert deployment.reload(timeout_s=60)
        finally:
            ended.set()
        assert all(future.result(60) for future in serving)


def test_sizes_that_alternate_cost_what_they_cost_alone(bundles: dict[str, Path], opened: Callable[..., Any]) -> None:
    """In one session for all sizes it was 15 times as much (onnxruntime#23006); here a factor of 3 is noise."""
    batches = [images(size) for size in SIZES]
    with opened(bundles["tversky"], "cuda") as backend:
        backend.warm_up()

        def seconds(order: list[Any]) -> float:
            times = []
            for batch in order:
                started = time.perf_counter()
                backend.run(batch)
                times.append(time.perf_counter() - started)
            return float(np.median(times))

        assert seconds(batches * 50) < 3 * seconds([batch for batch in batches for _ in range(50)])


def test_tf32_is_on_when_asked_for(bundles: dict[str, Path], opened: Callable[..., Any]) -> None:
    with opened(bundles["tversky"], "cuda", tf32=True) as backend:
        assert backend.details["provider_options"][CUDA]["use_tf32"] == "1"


def test_the_cpu_beside_cuda_is_taken_if_listed_and_counted(
    bundles: dict[str, Path], opened: Callable[..., Any]
) -> None:
    with opened(bundles["tversky"], "cuda", providers=[CUDA, CPU]) as backend:
        assert backend.details["nodes"][CUDA] > 0


@pytest.mark.parametrize("options", [{"nonsense": "1"}, {"gpu_mem_limit": "much"}])
def test_options_that_onnxruntime_does_not_know_are_refused(
    bundles: dict[str, Path], opened: Callable[..., Any], options: dict[str, str]
) -> None:
    with (
        pytest.raises(UsageError, match="refuses its options"),
        opened(bundles["tversky"], "cuda", provider_options=options),
    ):
        pass


def test_options_that_it_knows_are_taken(bundles: dict[str, Path], opened: Callable[..., Any]) -> None:
    options = {"gpu_mem_limit": str(1 << 30), "cudnn_conv_algo_search": "HEURISTIC"}
    with opened(bundles["tversky"], "cuda", provider_options=options) as backend:
        taken = backend.details["provider_options"][CUDA]
        assert {name: taken[name] for name in options} == options
        backend.run(images(2))


def test_auto_takes_cuda(bundles: dict[str, Path]) -> None:
    with Classifier.load(bundles["tversky"], "auto") as classifier:
        assert classifier.info["device"] == "cuda:0"
        assert classifier.info["reason"].startswith("auto: CUDA works")


@pytest.mark.slow
def test_the_tensorrt_provider_runs_what_it_was_asked_to(
    bundles: dict[str, Path], opened: Callable[..., Any], tmp_path: Path
) -> None:
    needs_tensorrt(native=False)
    with (
        opened(bundles["tversky"], "cuda", providers=[TENSORRT, CUDA], tf32=True) as backend,
        opened(bundles["tversky"], "cpu") as cpu,
    ):
        assert backend.details["nodes"].keys() <= {TENSORRT, CUDA}
        assert backend.details["provider_options"][TENSORRT].get("trt_fp16_enable", "0") in ("0", "False")
        for size in SIZES:
            np.testing.assert_allclose(backend.run(images(size)).logits, cpu.run(images(size)).logits, atol=1e-2)
    assert any((tmp_path / "engines").iterdir())


# Native TensorRT


def test_the_engine_is_built_once(
    bundles: dict[str, Path], opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_tensorrt(native=True)
    built = []
    serialize = engines.serialize
    monkeypatch.setattr(engines, "serialize", lambda *arguments: built.append(1) or serialize(*arguments))
    for _ in range(2):
        with opened(bundles["tversky"], "tensorrt") as backend:
            backend.run(images(4))
    assert len(built) == 1


def test_doctor_runs_a_model_on_each_device() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert findings["device cuda:0"].works, findings["device cuda:0"]
    assert findings["device tensorrt:0"].works == (tensorrt_problems() == []), findings["device tensorrt:0"]
    assert probe_device(Device("cuda")) == "runs a model with CUDAExecutionProvider"


# CUDA itself


def test_copies_of_page_locked_memory() -> None:
    gpu = Cuda(0)
    gpu.use()
    stream, buffer = gpu.stream(), Buffer(gpu, (64, 224, 224, 3), np.uint8)
    want = np.random.default_rng(0).integers(0, 256, buffer.host.shape, dtype=np.uint8)
    buffer.host[:] = want
    buffer.upload(64, stream)
    gpu.wait(stream)
    buffer.host[:] = 0
    buffer.download(64, stream)
    gpu.wait(stream)
    assert np.array_equal(buffer.host, want)
    buffer.close()
    gpu.destroy(stream)
    assert gpu.name()


def test_memory_that_is_not_there_fails_alone() -> None:
    gpu = Cuda(0)
    gpu.use()
    with pytest.raises(RunError, match=r"cudaMalloc failed \(CUDA error 2: cudaErrorMemoryAllocation"):
        gpu.allocate(1 << 50)
    gpu.free(gpu.allocate(256))


LOSE = """
import sys
from pathlib import Path
import numpy as np
import torch
from tnn_runtime import DeviceLost
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.backends import BackendOptions, open_backend

bundle = open_bundle(sys.argv[1])
backend, _ = open_backend(bundle, sys.argv[2], BackendOptions(max_batch_size=2, cache_dir=Path(sys.argv[3])))
images = np.zeros((2, *bundle.manifest.preprocessing.shape), np.uint8)
backend.run(images)
try:
    torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError:
    pass
for _ in range(2):
    try:
        backend.run(images)
    except DeviceLost as error:
        print("lost:", error)
backend.close()
print("closed")
"""


@pytest.mark.slow
def test_a_lost_device_is_told_and_the_backend_closes(bundles: dict[str, Path], device: str, tmp_path: Path) -> None:
    """PyTorch trips over a wrong index, which sticks to the context that it shares with the backend."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    command = [sys.executable, "-c", LOSE, str(bundles["tversky"]), device, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ})
    assert result.stdout.count("lost: ") == 2, result.stdout + result.stderr
    assert "closed" in result.stdout
    assert any(name in result.stdout for name, _ in FATAL.values())
