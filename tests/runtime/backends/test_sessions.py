"""The sessions of ONNX Runtime on a GPU that is made of host memory: which run what, and what keeps away from what."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from waiting import FOREVER, until

from tnn_runtime import ArtifactError, Deployment, ProviderUnavailable
from tnn_runtime.backends import Backend, BackendOptions, Device, cuda, open_backend
from tnn_runtime.backends import onnxruntime as module
from tnn_runtime.backends.binding import BoundSlot
from tnn_runtime.backends.capture import Gate
from tnn_runtime.backends.providers import CPU, CUDA, TENSORRT
from tnn_runtime.backends.weights import shared_weights
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.onnx_file import large_weights
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.queue.metrics import Metrics
from tnn_runtime.queue.replicas import Replica

pytest.importorskip("cuda.bindings.runtime")

from fake_cuda import FakeCuda

SIZES = (1, 2, 4, 8)


class Session:
    """A session of the CPU that stands for one of CUDA: it remembers its batch sizes, and records as CUDA's does."""

    def __init__(self, model: bytes, weights: Any, fake: FakeCuda, batch: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, value in weights.items():
            options.add_initializer(name, value)
        self.real = onnxruntime.InferenceSession(model, options, providers=[CPU])
        self.fake = fake
        self.sizes: list[int] = []
        self.recorded: set[str] = set()

    def meanwhile(self) -> None:
        """What happens while it records."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def run(self, names: list[str], feed: dict[str, Any]) -> Any:
        self.sizes.append(len(feed["images"]))
        return self.real.run(names, feed)

    def io_binding(self) -> Any:
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.sizes.append(binding.size)
        graph = "-1" if options is None else options.get_run_config_entry("gpu_graph_id")
        records = graph != "-1" and graph not in self.recorded
        self.recorded.add(graph)
        if records:
            self.fake.recording = threading.get_ident()
            self.meanwhile()
        self.real.run_with_iobinding(binding.real, options)
        self.fake.recording = None


class Binding:
    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_input(self, name: str, memory: str, index: int, dtype: Any, shape: list[int], address: int) -> None:
        self.size = shape[0]
        self.real.bind_input(name, memory, index, dtype, shape, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda(gpus=2)
    monkeypatch.setattr(cuda, "cuda_runtime", lambda: fake)
    yield fake
    assert fake.disturbed == []


@pytest.fixture
def made(fake: FakeCuda, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that are made, in their order."""
    sessions: list[Session] = []

    def open_session(model: bytes, device: Device, providers: Any, *how: Any) -> Session:
        *_, weights, batch = how
        session = Session(model, weights, fake, batch)
        if device.kind == "cuda":
            sessions.append(session)
        return session

    monkeypatch.setattr(module, "_session", open_session)
    monkeypatch.setattr(module, "require_cuda", lambda device: None)
    monkeypatch.setattr(module, "shared_weights", lambda model, device, index: shared_weights(model, "cpu", 0))
    monkeypatch.setattr(module, "BoundSlot", partial(BoundSlot, memory="cpu"))
    return sessions


@pytest.fixture
def opened(made: list[Session], small_bundle: Path) -> Callable[..., Backend]:
    return lambda **options: open_backend(
        open_bundle(small_bundle), "cuda:1", BackendOptions(max_batch_size=8, **options)
    )[0]


@pytest.fixture
def expected(small_bundle: Path) -> Callable[[Any], Any]:
    backend, _ = open_backend(open_bundle(small_bundle), "cpu", BackendOptions())
    return lambda images: backend.run(images).logits


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# One size to a session


@pytest.mark.parametrize("way", ["plain", "graphs", "pageable"])
def test_sizes_that_alternate_meet_a_session_each(
    opened: Callable[..., Backend],
    made: list[Session],
    expected: Callable[[Any], Any],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "pageable":
        monkeypatch.setattr(cuda, "cuda_runtime", unavailable)
    backend = opened(cuda_graphs=way == "graphs")
    assert len(made) == (8 if way == "plain" else 4)
    Replica(backend, 1, "as asked", Metrics()).warm_up()
    # Each has had the first run, which plans, before the first request: in each of the slots.
    assert sorted(session.sizes[0] for session in made) == sorted(SIZES * (len(made) // 4))
    batches = [images(SIZES[number % 4], number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for batch, outputs in zip(batches, pool.map(backend.run, batches), strict=True):
            assert np.array_equal(outputs.logits, expected(batch))
    assert [len(set(session.sizes)) for session in made] == [1] * len(made)
    assert [session.get_inputs()[0].shape[0] for session in made] == [session.sizes[0] for session in made]
    backend.close()


def unavailable() -> None:
    raise ProviderUnavailable("cuda-bindings cannot be imported")


def test_the_tensorrt_provider_has_one_session_for_all_sizes(
    opened: Callable[..., Backend], made: list[Session], tmp_path: Path
) -> None:
    backend = opened(providers=[TENSORRT, CUDA], tf32=True, cache_dir=tmp_path / "engines")
    (session,) = made
    backend.warm_up()
    assert session.sizes == [*SIZES, *SIZES]
    backend.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_nothing_is_left_when_it_is_closed(opened: Callable[..., Backend], fake: FakeCuda, graphs: bool) -> None:
    backend = opened(cuda_graphs=graphs)
    backend.warm_up()
    backend.close()
    assert fake.leaks == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tnn-")]


def reshaping() -> bytes:
    """What a vision transformer does: a part of it has a shape that depends on the batch."""
    values = {"zero": np.zeros(1, np.int64), "rest": np.array([-1], np.int64), "w": np.ones((12, 5), np.float32)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["y"]),
    ]
    shapes = {"x": ["batch", 3, 4], "y": ["batch", 5]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_session_for_one_size_has_no_arithmetic_of_shapes(batch: int) -> None:
    """CUDA's provider leaves it to the CPU, where nothing may run."""
    opener = partial(module._session, reshaping(), Device("cpu"), [(CPU, {})], 1, False, (), {})
    assert module._operators(opener(None), CPU).keys() >= {"Shape", "Gather", "Concat"}
    session = opener(batch)
    assert module._operators(session, CPU).keys() == {"Reshape", "MatMul"}
    assert session.run(None, {"x": np.ones((batch, 3, 4), np.float32)})[0].shape == (batch, 5)


# Weights


def test_weights_are_those_of_the_file(small_bundle: Path) -> None:
    graph = onnx.load(small_bundle / ONNX_FILE).graph
    weighted = {
        name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input if name
    }
    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer if value.name in weighted}
    found = large_weights((small_bundle / ONNX_FILE).read_bytes(), 0)
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[name], values[name]) for name in values)
    assert large_weights((small_bundle / ONNX_FILE).read_bytes(), 1 << 40) == {}


def model_of(weight: TensorProto) -> bytes:
    other = numpy_helper.from_array(np.ones(9, np.float32), "other")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["x", "other"], ["z"])]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], [weight, other])).SerializeToString()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3, 300), (300,), ()])
def test_weights_have_their_types_and_shapes(dtype: Any, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = large_weights(model_of(numpy_helper.from_array(weight, "w")), 0)
    assert list(found) == ["w"]
    assert (found["w"].dtype, found["w"].shape) == (weight.dtype, shape)
    assert np.array_equal(found["w"], weight)


def of_another_size() -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.dims[0] = 5
    return tensor


def outside() -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        outside(),
        helper.make_tensor("w", TensorProto.BFLOAT16, [4], b"12345678", raw=True),
        helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4]),
        of_another_size(),
    ],
    ids=["in another file", "of another type", "not raw", "of another size"],
)
def test_other_weights_are_left_to_each_session(tensor: TensorProto) -> None:
    assert large_weights(model_of(tensor), 0) == {}


def test_sessions_that_share_weights_give_the_same_and_say_so(
    opened: Callable[..., Backend], expected: Callable[[Any], Any], small_bundle: Path
) -> None:
    backend = opened()
    weights = shared_weights((small_bundle / ONNX_FILE).read_bytes(), "cpu", 0)
    assert len(weights) >= 2
    assert backend.details["weights"] == f"{len(weights)} shared by all sessions"
    assert np.array_equal(backend.run(images(4)).logits, expected(images(4)))


def test_without_room_for_shared_weights_each_session_has_its_own(
    opened: Callable[..., Backend], expected: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 700")

    monkeypatch.setattr(module, "shared_weights", fail)
    backend = opened()
    assert backend.details["weights"] == "in each session: Failed to allocate memory for requested buffer of size 700"
    assert np.array_equal(backend.run(images(4)).logits, expected(images(4)))


def quantized() -> bytes:
    """A convolution of int8, with a scale for each channel of its weights."""
    scales = np.linspace(0.01, 0.1, 4, dtype=np.float32)
    values = {
        "w": np.random.default_rng(0).integers(-64, 64, (4, 3, 3, 3)).astype(np.int8),
        "scales": scales,
        "zeros": np.zeros(4, np.int8),
        "scale": np.float32(0.02),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["weights"], axis=0),
        helper.make_node("Conv", ["d", "weights"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3 + (name == "y"), None, None]) for name in "xy"
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(("names", "left"), [([CUDA], 1), ([CUDA, CPU], 1), ([TENSORRT, CUDA], 2), ([CPU], 2)])
def test_on_cuda_quantised_weights_become_float32_when_the_session_is_opened(
    names: list[str], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def open_session(model: bytes, options: Any, **others: Any) -> Any:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        seen.append(InferenceSession(model, options, providers=[CPU]))
        raise ArtifactError("seen")

    InferenceSession = onnxruntime.InferenceSession  # noqa: N806
    monkeypatch.setattr(module, "require_providers", lambda device, names: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises((ArtifactError, ProviderUnavailable), match="seen"):
        module._session(quantized(), Device("cuda"), [(name, {}) for name in names], 1, False)
    (session,) = seen
    assert module._operators(session, CPU)["DequantizeLinear"] == left


@pytest.mark.gpu
@pytest.mark.parametrize("model", [reshaping, quantized])
def test_on_a_gpu_nothing_is_left_to_the_cpu(model: Callable[[], bytes]) -> None:
    session = module._session(model(), Device("cuda"), [(CUDA, {})], 1, False, (), {}, 4)
    assert module.node_counts(session).keys() == {CUDA}


# Recording keeps everything else away


@pytest.mark.parametrize("what", ["a run", "the end", "the opening of another one"])
def test_a_graph_is_recorded_while_nothing_else_uses_a_gpu(
    opened: Callable[..., Backend], made: list[Session], fake: FakeCuda, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = opened()
    does = {"a run": lambda: live.run(images(2)), "the end": live.close, "the opening of another one": opened}[what]
    threads: list[threading.Thread] = []

    def meanwhile(self: Session) -> None:
        if not threads:
            threads.append(threading.Thread(target=does))
            threads[0].start()
            threads[0].join(0.2)  # it never ends before the recording does
            assert threads[0].is_alive()

    monkeypatch.setattr(Session, "meanwhile", meanwhile)
    recording = opened(cuda_graphs=True)
    (thread,) = threads
    thread.join(FOREVER)
    assert not thread.is_alive()
    assert len(recording.run(images(2)).logits) == 2


@pytest.mark.parametrize("graphs", [False, True])
def test_a_bundle_is_exchanged_while_the_one_before_serves(
    made: list[Session], small_bundle: Path, expected: Callable[[Any], Any], graphs: bool
) -> None:
    batches = [images(count, count) for count in (1, 3, 8)]
    answers = [
        expected(np.resize(batch, (size, 8, 8, 3)))[: len(batch)]
        for batch, size in zip(batches, (1, 4, 8), strict=True)
    ]
    ended = threading.Event()
    rounds = threading.Semaphore(0)

    def serve() -> bool:
        good = True
        while not ended.is_set():
            good &= all(
                np.array_equal(deployment.logits(batch), answer) for batch, answer in zip(batches, answers, strict=True)
            )
            rounds.release()
        return good

    with (
        Deployment(small_bundle, ["cuda:0", "cuda:1"], cuda_graphs=graphs, max_batch_size=8) as deployment,
        ThreadPoolExecutor(4) as pool,
    ):
        serving = [pool.submit(serve) for _ in range(4)]
        try:
            for _ in range(3):
                assert rounds.acquire(timeout=FOREVER)
                assert deployment.reload(timeout_s=FOREVER)
        finally:
            ended.set()
        assert all(future.result(FOREVER) for future in serving)


def test_whoever_wants_to_be_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    gate, order = Gate(), []

    def alone() -> None:
        with gate.alone():
            order.append("alone")

    def enter() -> None:
        with gate:
            order.append("inside")

    with gate:
        waiting = threading.Thread(target=alone)
        waiting.start()
        until(lambda: gate._alone)
        late = threading.Thread(target=enter)
        late.start()
        late.join(0.1)
        assert order == []
        assert late.is_alive()
    for thread in (waiting, late):
        thread.join(FOREVER)
    assert order == ["alone", "inside"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_gate_opens_again_after_an_error(error: type[BaseException]) -> None:
    gate = Gate()
    for use in (gate, gate.alone()):
        with pytest.raises(error), use:
            raise error
    with gate.alone():
        pass
    with gate, gate:
        pass
