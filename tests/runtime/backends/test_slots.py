"""Buffers, bindings and recorded graphs on a GPU that is made of host memory, see `fake_cuda`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tnn_runtime import ClassifierClosed, DeviceLost, Manifest, ProviderUnavailable, RunError
from tnn_runtime.backends import BackendOptions, Device, cuda, open_device_timer
from tnn_runtime.backends import onnxruntime as module
from tnn_runtime.backends.binding import BoundSlot
from tnn_runtime.backends.cuda import Buffer, Cuda
from tnn_runtime.backends.slots import Slots
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.opened import open_bundle

pytest.importorskip("cuda.bindings.runtime")

from fake_cuda import FakeCuda

SIZES = (1, 2, 4, 8)
SENT = {"arena_extend_strategy": "kSameAsRequested"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(gpus=2)
    monkeypatch.setattr(cuda, "cuda_runtime", lambda: fake)
    return fake


@pytest.fixture
def manifest(small_bundle: Path) -> Manifest:
    return Manifest.read(small_bundle)[0]


@pytest.fixture
def session(small_bundle: Path) -> Any:
    return module.open_session(str(small_bundle / ONNX_FILE), "cpu", 1)


@pytest.fixture
def slot(fake: FakeCuda, manifest: Manifest, session: Any) -> BoundSlot:
    return BoundSlot(dict.fromkeys(SIZES, session), Cuda(1), manifest, memory="cpu")


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# CUDA


def test_a_buffer_goes_to_the_gpu_and_back(fake: FakeCuda) -> None:
    gpu = Cuda(0)
    gpu.use()
    stream, buffer = gpu.stream(), Buffer(gpu, (3, 2), np.float32)
    buffer.host[:] = [[1, 2], [3, 4], [5, 6]]
    buffer.upload(2, stream)
    gpu.wait(stream)
    buffer.host[:] = 0
    buffer.download(3, stream)
    assert not buffer.host.any()  # nothing comes before it is waited for
    gpu.wait(stream)
    assert buffer.host[:2].tolist() == [[1, 2], [3, 4]]
    assert buffer.host[2, 0] != 5
    buffer.close()
    gpu.destroy(stream)
    assert fake.leaks == []


def test_what_the_gpu_is_and_runs_on(fake: FakeCuda) -> None:
    assert Cuda(1).name() == "Fake GPU"
    assert Cuda(1).versions() == {"cuda driver": "13.1", "cuda runtime": "13.0"}


def test_a_gpu_that_is_not_there_is_named(fake: FakeCuda) -> None:
    with pytest.raises(ProviderUnavailable, match=r"there is no GPU 2, CUDA shows 2 of them, counted from 0; choose"):
        Cuda(2)


@pytest.mark.parametrize(("function", "code"), [("cudaGetDeviceCount", 35), ("cudaSetDevice", 46), ("cudaFree", 999)])
def test_a_gpu_that_does_not_work_is_an_error_with_the_reason(fake: FakeCuda, function: str, code: int) -> None:
    fake.failing[function] = code
    with pytest.raises(ProviderUnavailable, match=rf"no GPU works here \({function} failed \(CUDA error {code}: cudaE"):
        Cuda(0)


def test_without_cuda_bindings_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ProviderUnavailable, match=r"cuda-bindings cannot be imported .*pip install 'cuda-bindings>=13"):
        Cuda(0)


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc"])
def test_memory_that_is_not_there_is_an_error_that_leaves_nothing(fake: FakeCuda, function: str) -> None:
    fake.failing[function] = 2
    with pytest.raises(
        RunError, match=rf"{function} failed \(CUDA error 2: cudaErrorMemoryAllocation, out of memory\);"
    ):
        Buffer(Cuda(0), (3, 2), np.float32)
    assert fake.leaks == []


def test_a_recording_that_fails_ends(fake: FakeCuda) -> None:
    gpu = Cuda(0)
    stream = gpu.stream()

    def work() -> None:
        raise KeyError("not recorded")

    with pytest.raises(KeyError):
        gpu.record(stream, work)
    assert fake.capturing == {}
    assert fake.graphs == {}


def test_the_clock_of_the_gpu_tells_how_long_work_takes(fake: FakeCuda) -> None:
    gpu = Cuda(0)
    gpu.use()
    stream, buffer = gpu.stream(), Buffer(gpu, (3, 2), np.float32)
    buffer.upload(3, stream)
    assert gpu.seconds(stream, lambda: [buffer.upload(1, stream), buffer.download(1, stream)]) == 2e-3
    assert fake.events == {}
    fake.failing["cudaEventSynchronize"] = 2
    with pytest.raises(RunError, match="cudaEventSynchronize failed"):
        gpu.seconds(stream, lambda: None)
    assert fake.events == {}


# Bound calls


def test_bound_runs_give_what_the_session_gives(slot: BoundSlot, session: Any) -> None:
    for size in SIZES:
        batch = images(size, size)
        for found, expected in zip(
            slot.run(batch), session.run(["logits", "embedding"], {"images": batch}), strict=True
        ):
            assert np.array_equal(found, expected)
            assert found.flags.owndata


def test_further_outputs_come_back_if_they_are_named(slot: BoundSlot) -> None:
    _, embedding, again = slot.run(images(4), ("embedding",))
    assert np.array_equal(embedding, again)
    assert [len(output) for output in slot.run(images(2))] == [2, 2]


def test_several_threads_share_two_slots(fake: FakeCuda, manifest: Manifest, session: Any) -> None:
    slots = Slots([BoundSlot(dict.fromkeys(SIZES, session), Cuda(1), manifest, memory="cpu") for _ in range(2)])
    batches = [images(SIZES[number % len(SIZES)], number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(slots.run, batches))
    for batch, (logits, embedding) in zip(batches, results, strict=True):
        expected = session.run(None, {"images": batch})
        assert np.array_equal(logits, expected[0])
        assert np.array_equal(embedding, expected[1])
    slots.close()
    slots.close()
    assert fake.leaks == []
    for _ in range(2):
        with pytest.raises(ClassifierClosed, match="this backend is closed"):
            slots.run(batches[0])


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (2, 9, 8, 3), (2, 8, 8, 1)])
def test_a_batch_that_does_not_fit_is_refused(slot: BoundSlot, shape: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match=r"got a batch of "):
        slot.run(np.zeros(shape, np.uint8))
    assert len(slot.run(images(2))[0]) == 2


def test_a_failed_run_fails_alone(slot: BoundSlot) -> None:
    real = dict(slot._calls)

    def fail(binding: object, options: object) -> None:
        raise RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=1 ; hostname=x")

    slot._calls[2] = SimpleNamespace(run_with_iobinding=fail), None, None
    with pytest.raises(
        RunError, match=r"cannot run the model on 2 images \(CUBLAS failure 3: .*_FAILED\); use a small"
    ):
        slot.run(images(2))
    slot._calls.update(real)
    assert len(slot.run(images(2))[0]) == 2


def test_a_lost_device_is_noticed_though_the_message_is_silent(slot: BoundSlot, fake: FakeCuda) -> None:
    def fail(binding: object, options: object) -> None:
        fake.lost = 700
        raise RuntimeError("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED")

    slot._calls[2] = SimpleNamespace(run_with_iobinding=fail), None, None
    with pytest.raises(DeviceLost, match=r"CUDA error 700: cudaErrorIllegalAddress, an illegal memory access"):
        slot.run(images(2))
    with pytest.raises(DeviceLost, match=r"cudaSetDevice failed"):
        slot.run(images(2))
    Slots([slot]).close()


@pytest.mark.parametrize("copies", range(1, 3))
def test_nothing_of_a_failed_run_is_on_its_way_when_the_next_one_writes(
    slot: BoundSlot, fake: FakeCuda, session: Any, copies: int
) -> None:
    real = fake.cudaMemcpyAsync

    def fail(*arguments: Any) -> Any:
        nonlocal copies
        copies -= 1
        return real(*arguments) if copies >= 0 else (2,)

    fake.__dict__["cudaMemcpyAsync"] = fail
    with pytest.raises(RunError, match="cudaMemcpyAsync failed"):
        slot.run(images(4))
    assert not any(fake.streams.values())
    del fake.__dict__["cudaMemcpyAsync"]
    assert np.array_equal(slot.run(images(2, 2))[0], session.run(["logits"], {"images": images(2, 2)})[0])


# The whole backend


@pytest.fixture
def opened(
    fake: FakeCuda, manifest: Manifest, session: Any, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., module.OnnxRuntimeBackend]:
    """Opens the backend on ``cuda:1``, on a session of the CPU that stands for all those of CUDA."""
    monkeypatch.setattr(module, "_session", lambda *arguments: session)
    monkeypatch.setattr(module, "_share", lambda bundle, device: ({}, {}))
    monkeypatch.setattr(module, "BoundSlot", partial(BoundSlot, memory="cpu"))

    def opener(**options: Any) -> module.OnnxRuntimeBackend:
        return module.OnnxRuntimeBackend(
            open_bundle(small_bundle), Device("cuda", 1), BackendOptions(max_batch_size=8, **options)
        )

    return opener


def test_on_cuda_two_calls_overlap_in_page_locked_memory(
    opened: Callable[..., module.OnnxRuntimeBackend], fake: FakeCuda, session: Any
) -> None:
    backend = opened()
    assert (backend.device, backend.batch_sizes, backend.concurrency) == ("cuda:1", SIZES, 2)
    assert backend.details["memory"] == "page-locked"
    assert backend.versions["cuda driver"] == "13.1"
    assert np.array_equal(backend.run(images(4)).logits, session.run(["logits"], {"images": images(4)})[0])
    backend.close()
    backend.close()
    assert fake.leaks == []


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_feature_maps_come_back_if_they_are_asked_for(
    fake: FakeCuda, mapped: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    extra = ("feature_maps",)
    bundle = open_bundle(mapped["tversky"])
    session = module.open_session(str(mapped["tversky"] / ONNX_FILE), "cpu", 1)
    monkeypatch.setattr(module, "_session", lambda *arguments: session)
    monkeypatch.setattr(module, "_share", lambda bundle, device: ({}, {}))
    monkeypatch.setattr(module, "BoundSlot", partial(BoundSlot, memory="cpu"))
    backend = module.OnnxRuntimeBackend(
        bundle, Device("cuda", 1), BackendOptions(max_batch_size=8, cuda_graphs=cuda_graphs)
    )
    batch = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    logits, maps = session.run(["logits", "feature_maps"], {"images": batch})
    run, seen = onnxruntime.InferenceSession.run, []

    def watched(self: Any, names: Any, feed: Any, options: Any) -> Any:
        number = None if options is None else options.get_run_config_entry("gpu_graph_id")
        seen.append((threading.current_thread().name.startswith("tnn-cuda-graphs"), number))
        return run(self, names, feed, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", watched)
    for asked in (False, True, False):
        found = backend.run(batch, extra if asked else ())
        assert np.array_equal(found.logits, logits)
        assert list(found.extra) == (list(extra) if asked else [])
        assert not asked or np.array_equal(found.extra["feature_maps"], maps)
    assert seen == [(True, "-1") if cuda_graphs else (False, None)]  # never as a part of a recorded graph
    with pytest.raises(RunError, match="got a batch of 3; expected one of"):
        backend.run(batch[:3], extra)
    backend.close()
    with pytest.raises(ClassifierClosed):
        backend.run(batch, extra)
    assert fake.leaks == []


def test_with_cuda_graphs_all_calls_go_through_one_thread(
    opened: Callable[..., module.OnnxRuntimeBackend], session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = onnxruntime.InferenceSession.run_with_iobinding

    def watched(self: Any, binding: Any, options: Any) -> None:
        seen.append((threading.current_thread().name, options.get_run_config_entry("gpu_graph_id")))
        run(self, binding, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", watched)
    backend = opened(cuda_graphs=True)
    assert backend.concurrency == 1
    batches = [images(SIZES[number % 4], number) for number in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for batch, outputs in zip(batches, pool.map(backend.run, batches), strict=True):
            assert np.array_equal(outputs.logits, session.run(["logits"], {"images": batch})[0])
    assert {name for name, _ in seen} == {"tnn-cuda-graphs_0"}
    # Before anybody asks, each size runs, is recorded, and is replayed; and then replayed again.
    assert [graph for _, graph in seen[:12]] == [number for size in "1248" for number in ("-1", size, size)]
    assert sorted(graph for _, graph in seen[12:]) == sorted("1248" * 4)
    with pytest.raises(RunError, match="got a batch of 3"):
        backend.run(images(3))
    backend.close()
    assert not any(thread.name.startswith("tnn-") for thread in threading.enumerate())
    with pytest.raises(ClassifierClosed):
        backend.run(images(1))


def test_without_cuda_bindings_memory_is_pageable_and_said_to_be(
    opened: Callable[..., module.OnnxRuntimeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ProviderUnavailable("cuda-bindings cannot be imported")

    monkeypatch.setattr(cuda, "cuda_runtime", missing)
    backend = opened()
    assert backend.details["memory"] == "pageable: cuda-bindings cannot be imported"
    assert backend.batch_sizes == SIZES
    backend.warm_up()
    assert backend.run(images(4)).logits.shape == (4, 2)
    with pytest.raises(RunError, match=r"got a batch of 3; expected one of \[1, 2, 4, 8\]: fill it up"):
        backend.run(images(3))
    backend.close()
    with pytest.raises(ClassifierClosed):
        backend.run(images(4))
    with pytest.raises(ProviderUnavailable, match="cuda-bindings"):
        opened(cuda_graphs=True)


def test_too_little_memory_for_the_buffers_is_an_error_that_leaves_nothing(
    opened: Callable[..., module.OnnxRuntimeBackend], fake: FakeCuda
) -> None:
    fake.failing["cudaHostAlloc"] = 2
    with pytest.raises(
        ProviderUnavailable, match=r"'cuda:1' cannot be prepared for batches of 1 to 8 \(cudaHostAlloc failed .*\);"
    ):
        opened()
    assert fake.leaks == []


class OnStream:
    """A session of the CPU whose runs wait in the stream that it was given, as those of CUDA do."""

    def __init__(self, fake: FakeCuda, session: Any, stream: int) -> None:
        self._fake, self._session, self._stream = fake, session, stream

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._fake.queue(self._stream, lambda: self._session.run_with_iobinding(binding, options))


def test_the_device_time_is_that_of_the_computation_alone(
    fake: FakeCuda, manifest: Manifest, session: Any, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def open_session(model: str, device: Device, providers: list[Any], *how: Any) -> OnStream:
        asked.extend(providers)
        return OnStream(fake, session, int(providers[0][1]["user_compute_stream"]))

    monkeypatch.setattr(module, "_session", open_session)
    monkeypatch.setattr(module, "_share", lambda bundle, device: ({}, {}))
    monkeypatch.setattr(module, "BoundSlot", partial(BoundSlot, memory="cpu"))
    options = BackendOptions(max_batch_size=8, tf32=True)
    with open_device_timer(open_bundle(small_bundle), "cuda:1", options) as timed:
        for count in (1, 3, 8):
            seconds, logits = timed(images(count, count))
            assert seconds == 1e-3
            assert np.array_equal(logits, session.run(["logits"], {"images": images(count, count)})[0])
        with pytest.raises(RunError, match="got a batch of 9"):
            timed(images(9))
    assert [(name, {**had, "user_compute_stream": "1"}) for name, had in asked] == [
        ("CUDAExecutionProvider", SENT | {"device_id": "1", "use_tf32": "1", "user_compute_stream": "1"})
    ] * len(SIZES)
    assert fake.leaks == []


def test_a_device_timer_that_cannot_be_opened_leaves_nothing(
    fake: FakeCuda, manifest: Manifest, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise ProviderUnavailable("no such luck")

    monkeypatch.setattr(module, "_session", refuse)
    monkeypatch.setattr(module, "_share", lambda bundle, device: ({}, {}))
    with (
        pytest.raises(ProviderUnavailable, match="no such luck"),
        open_device_timer(open_bundle(small_bundle), "cuda", BackendOptions()),
    ):
        pass
    assert fake.leaks == []
