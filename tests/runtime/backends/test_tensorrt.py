"""Native TensorRT: engines are really built, by TensorRT for RTX, and run by fakes of CUDA and TensorRT."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from waiting import FOREVER

from tnn_runtime import (
    ArtifactError,
    ClassifierClosed,
    DeviceLost,
    EngineError,
    ProviderUnavailable,
    RunError,
    UsageError,
)
from tnn_runtime.backends import (
    PROBE,
    BackendOptions,
    Device,
    Outputs,
    cuda,
    open_backend,
    open_device_timer,
    probe_device,
)
from tnn_runtime.backends import tensorrt as module
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.opened import Bundle, open_bundle
from tnn_runtime.engines import Library, engine_folder, find_tensorrt
from tnn_runtime.engines import build as engines

pytest.importorskip("cuda.bindings.runtime")
pytest.importorskip("tensorrt_rtx_bindings")

from fake_cuda import FakeCuda, FakeTensorRt

SIZES = (1, 2, 4, 8)
Opener = Callable[..., module.TensorRtBackend]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(gpus=2)
    monkeypatch.setattr(cuda, "cuda_runtime", lambda: fake)
    return fake


@pytest.fixture
def trt(fake: FakeCuda, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """Builds as TensorRT for RTX does, and runs without a GPU."""
    runs = FakeTensorRt(fake, small_bundle / ONNX_FILE)
    real = find_tensorrt("tensorrt_rtx")
    names = ("Runtime", "TensorIOMode", "ExecutionContextAllocationStrategy")
    module_of_both = SimpleNamespace(**vars(real.module) | {name: getattr(runs, name) for name in names})
    monkeypatch.setattr(module, "find_tensorrt", lambda: Library(module_of_both, real.kind, real.version))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    return runs


@pytest.fixture
def opened(trt: FakeTensorRt, small_bundle: Path, tmp_path: Path) -> Opener:
    def opener(bundle: Bundle | None = None, **options: Any) -> module.TensorRtBackend:
        asked = {"max_batch_size": 8, "cache_dir": tmp_path / "engines"} | options
        return module.TensorRtBackend(
            bundle or open_bundle(small_bundle), Device("tensorrt", 1), BackendOptions(**asked)
        )

    return opener


@pytest.fixture
def expected(small_bundle: Path) -> Callable[[Any], Outputs]:
    """What ONNX Runtime gives on the CPU."""
    backend, _ = open_backend(open_bundle(small_bundle), "cpu", BackendOptions())
    return backend.run


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# Running


@pytest.mark.parametrize("graphs", [False, True])
def test_batches_of_all_sizes_and_threads_get_their_own_answers(
    opened: Opener, fake: FakeCuda, trt: FakeTensorRt, expected: Callable[[Any], Outputs], graphs: bool
) -> None:
    backend = opened(cuda_graphs=graphs)
    assert (backend.device, backend.batch_sizes, backend.concurrency) == ("tensorrt:1", SIZES, 2)
    assert trt.contexts == (8 if graphs else 2)
    batches = [images(SIZES[number % 4], number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for batch, outputs in zip(batches, pool.map(backend.run, batches), strict=True):
            want = expected(batch)
            assert np.array_equal(outputs.logits, want.logits)
            assert np.array_equal(outputs.embedding, want.embedding)
            assert outputs.logits.flags.owndata
    assert fake.launches == (8 + 64 if graphs else 0)
    assert len(fake.graphs) == (8 if graphs else 0)
    backend.close()
    backend.close()
    assert fake.leaks == []
    with pytest.raises(ClassifierClosed):
        backend.run(images(1))


def test_graphs_are_recorded_while_nothing_else_uses_a_gpu(
    opened: Opener, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = opened()
    threads = []
    begin = fake.cudaStreamBeginCapture

    def begin_and_look(*arguments: Any) -> Any:
        begun = begin(*arguments)
        threads.append(threading.Thread(target=live.run, args=[images(2)]))
        threads[-1].start()
        threads[-1].join(0.05)  # it never ends before the recording does
        assert threads[-1].is_alive()
        return begun

    monkeypatch.setattr(fake, "cudaStreamBeginCapture", begin_and_look)
    opened(cuda_graphs=True)
    for thread in threads:
        thread.join(FOREVER)
    assert len(threads) == 8
    assert fake.disturbed == []


@pytest.mark.parametrize("head", ["tversky", "linear"])
def test_feature_maps_come_back_if_they_are_asked_for(
    head: str, trt: FakeTensorRt, opened: Opener, fake: FakeCuda, mapped: dict[str, Path]
) -> None:
    bundle = open_bundle(mapped[head])
    trt.model = mapped[head] / ONNX_FILE
    backend = opened(bundle)
    want, _ = open_backend(bundle, "cpu", BackendOptions())
    batch = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    extra = ("feature_maps",)
    expected = want.run(batch, extra)
    for asked in (False, True, False):
        found = backend.run(batch, extra if asked else ())
        assert np.array_equal(found.logits, expected.logits)
        assert list(found.extra) == (list(extra) if asked else [])
        assert not asked or np.array_equal(found.extra["feature_maps"], expected.extra["feature_maps"])
    backend.close()
    assert fake.leaks == []


@pytest.mark.parametrize("graphs", [False, True])
def test_the_device_time_is_that_of_the_engine_alone(
    trt: FakeTensorRt,
    fake: FakeCuda,
    small_bundle: Path,
    tmp_path: Path,
    expected: Callable[[Any], Outputs],
    graphs: bool,
) -> None:
    options = BackendOptions(max_batch_size=8, cache_dir=tmp_path, cuda_graphs=graphs)
    with open_device_timer(open_bundle(small_bundle), "tensorrt:1", options) as timed:
        for count in (1, 3, 8):
            seconds, logits = timed(images(count, count))
            assert seconds == 1e-3
            assert np.array_equal(logits, expected(images(count, count)).logits)
    assert fake.leaks == []


def test_the_probe_runs(trt: FakeTensorRt, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    trt.model = PROBE
    assert probe_device(Device("tensorrt", 1)).startswith("runs a model with tensorrt_rtx 1.")
    assert fake.leaks == []
    trt.complaint = "no"
    with pytest.raises(RunError):
        probe_device(Device("tensorrt", 1))
    assert fake.leaks == []


def test_it_tells_what_it_runs_on(opened: Opener, tmp_path: Path) -> None:
    backend = opened(tf32=True)
    assert backend.versions.keys() == {"tensorrt_rtx", "cuda driver", "cuda runtime"}
    (engine,) = (tmp_path / "engines").glob("*.engine")
    assert backend.details == {
        "engine": str(engine),
        "gpu": "Fake GPU",
        "memory": "page-locked",
        "tf32": True,
        "cuda_graphs": False,
    }
    assert engine.name.endswith("-b1-4-8-tf32.engine")


def test_the_engine_is_built_once(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    serialize = engines.serialize
    monkeypatch.setattr(engines, "serialize", lambda *arguments: built.append(1) or serialize(*arguments))
    opened().close()
    opened().close()
    assert len(built) == 1
    opened(max_batch_size=4).close()
    assert len(built) == 2


def test_engines_are_kept_in_the_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert engine_folder() == tmp_path / "cache" / "tnn-deploy" / "engines"
    assert engine_folder().stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine_folder() == tmp_path / "home" / ".cache" / "tnn-deploy" / "engines"
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"engines cannot be kept in .*file/x \(.*\); make it writable, or choose"):
        engine_folder(tmp_path / "file" / "x")


# Failing


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (9, 8, 8, 3), (2, 9, 8, 3)])
def test_a_batch_that_does_not_fit_is_refused(opened: Opener, shape: tuple[int, ...]) -> None:
    backend = opened()
    with pytest.raises(RunError, match="got a batch of "):
        backend.run(np.zeros(shape, np.uint8))
    assert len(backend.run(images(2)).logits) == 2


def test_a_failed_run_fails_alone(opened: Opener, trt: FakeTensorRt) -> None:
    backend = opened()
    trt.complaint = "IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (no further information)"
    for _ in range(3):
        with pytest.raises(RunError, match=r"tensorrt_rtx .* cannot run the model on 2 images \(.*OutOfMemory"):
            backend.run(images(2))
    trt.complaint = None
    assert len(backend.run(images(2)).logits) == 2


def test_a_lost_device_is_told_by_tensorrt_or_by_cuda(opened: Opener, trt: FakeTensorRt, fake: FakeCuda) -> None:
    backend = opened()
    trt.complaint = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(DeviceLost, match=r"illegal memory access .*start another process"):
        backend.run(images(2))
    trt.complaint = "Error Code 1: Cask (Cask convolution execution)"
    fake.failing["cudaStreamSynchronize"] = 719
    with pytest.raises(DeviceLost, match=r"CUDA error 719: cudaErrorLaunchFailure"):
        backend.run(images(2))
    backend.close()


@pytest.mark.parametrize(
    ("function", "code", "error"),
    [
        ("cudaMemcpyAsync", 2, RunError),
        ("cudaStreamSynchronize", 700, DeviceLost),
        ("cudaSetDevice", 719, DeviceLost),
    ],
)
def test_every_code_of_cuda_is_checked(
    opened: Opener, fake: FakeCuda, function: str, code: int, error: type[Exception]
) -> None:
    backend = opened()
    fake.failing[function] = code
    with pytest.raises(error, match=rf"{function} failed \(CUDA error {code}: "):
        backend.run(images(2))


@pytest.mark.parametrize(
    "function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"]
)
def test_a_recording_that_fails_is_an_error_that_leaves_nothing(opened: Opener, fake: FakeCuda, function: str) -> None:
    fake.failing[function] = 2
    with pytest.raises(ProviderUnavailable, match=rf"cannot be prepared for batches of 1 to 8 \({function} failed"):
        opened(cuda_graphs=True)
    assert fake.leaks == []


def test_a_replay_that_fails_fails_alone(opened: Opener, fake: FakeCuda, expected: Callable[[Any], Outputs]) -> None:
    backend = opened(cuda_graphs=True)
    fake.failing["cudaGraphLaunch"] = 2
    with pytest.raises(RunError, match="cudaGraphLaunch failed"):
        backend.run(images(2))
    fake.failing.clear()
    for seed in range(4):
        assert np.array_equal(backend.run(images(2, seed)).logits, expected(images(2, seed)).logits)


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        (
            "context",
            r"cannot be prepared for batches of 1 to 8 \(.* makes no execution context \(IEngine: out of memory\)",
        ),
        ("capture", r"cannot record batches of 1; load the bundle without cuda_graphs"),
        ("address", r"takes no address for 'images'"),
    ],
)
def test_what_tensorrt_refuses_leaves_nothing(
    opened: Opener, trt: FakeTensorRt, fake: FakeCuda, refuses: str, message: str
) -> None:
    trt.refuses.add(refuses)
    with pytest.raises(ProviderUnavailable, match=message):
        opened(cuda_graphs=True)
    assert fake.leaks == []


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
def test_too_little_memory_is_an_error_that_leaves_nothing(opened: Opener, fake: FakeCuda, function: str) -> None:
    fake.failing[function] = 2
    with pytest.raises(
        ProviderUnavailable, match=rf"'tensorrt:1' cannot be prepared for batches of 1 to 8 \({function} "
    ):
        opened()
    assert fake.leaks == []


def test_an_engine_that_does_not_load_is_named(opened: Opener, trt: FakeTensorRt) -> None:
    trt.refuses.add("engine")
    with pytest.raises(
        EngineError, match=r"does not load .*\.engine \(.*for another GPU\)\); remove it, and it is built"
    ):
        opened()


def test_an_engine_of_another_interface_is_refused(opened: Opener, small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    manifest = bundle.manifest
    logits, *others = manifest.outputs
    renamed = dataclasses.replace(manifest, outputs=(dataclasses.replace(logits, name="scores"), *others))
    with pytest.raises(ArtifactError, match=r"has the tensors .*'logits': .* where the manifest has .*'scores': "):
        opened(dataclasses.replace(bundle, manifest=renamed))


@pytest.mark.parametrize("options", [{"providers": ["CUDAExecutionProvider"]}, {"provider_options": {"a": "b"}}])
def test_providers_are_not_for_tensorrt_itself(opened: Opener, options: Any) -> None:
    with pytest.raises(UsageError, match=r"is TensorRT itself and has no execution providers; leave"):
        opened(**options)


def test_a_bundle_without_onnx_is_refused(opened: Opener, small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    unlisted = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files={}))
    with pytest.raises(ArtifactError, match=r"lists no model.onnx, which engines are built from"):
        opened(unlisted)


def test_a_gpu_that_is_not_there_is_named(opened: Opener, fake: FakeCuda) -> None:
    fake.gpus = 1
    with pytest.raises(ProviderUnavailable, match="there is no GPU 1, CUDA shows 1 of them"):
        opened()


# What is missing


def test_all_that_is_missing_is_named_at_once(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for name in ("tensorrt", "tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ProviderUnavailable) as caught:
        open_backend(open_bundle(small_bundle), "tensorrt:2", BackendOptions())
    message = str(caught.value)
    assert message.startswith("device 'tensorrt:2' does not work here: no TensorRT that builds engines: none is inst")
    for part in (
        "install one with pip install 'tensorrt<12,>=10.13'",
        "cuda-bindings cannot be imported",
        "libcuda.so.1: cannot open",
    ):
        assert part in message
    assert message.endswith("; or choose device 'cuda' or 'cpu'")


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed")
def test_here_the_driver_is_what_is_missing() -> None:
    problems = module.tensorrt_problems()
    assert problems == [] or any("libcuda.so.1" in problem for problem in problems)


def test_no_thread_is_left(opened: Opener) -> None:
    before = threading.active_count()
    opened(cuda_graphs=True).close()
    assert threading.active_count() == before
