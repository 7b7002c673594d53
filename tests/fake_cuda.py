"""A CUDA runtime whose GPUs are memory of the host, and a TensorRT on top of it that computes with ONNX Runtime.

Copies and computations wait in their streams until somebody waits for them, so that whoever forgets to wait reads
garbage. Errors stick as they do in CUDA. `FakeCuda.leaks` tells what was not released, and `FakeCuda.disturbed` what
was called while another thread recorded.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from cuda.bindings import runtime as real

STICKY = {700, 719}
Work = Callable[[], None]


class FakeCuda:
    """Stands for the module ``cuda.bindings.runtime``."""

    cudaMemcpyKind = real.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = real.cudaStreamCaptureMode  # noqa: N815

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.memory: dict[int, tuple[str, Any, int]] = {}
        self.streams: dict[int, deque[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, float] = {}
        self.milliseconds = 0.0
        """Each copy and each computation takes one."""
        self.launches = 0
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self.lost = 0
        self.devices: dict[int, int] = {}
        self.recording: int | None = None
        """The thread that records a graph."""
        self.disturbed: list[str] = []
        self._recorded: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._local = threading.local()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if (
            not name.startswith("cuda")
            or name.startswith("cudaGetError")
            or not callable(value)
            or isinstance(value, type)
        ):
            return value

        def checked(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if self.recording not in (None, threading.get_ident()):
                self.disturbed.append(name)
                return real.cudaError_t(900), None
            code = self.lost or self.failing.get(name, 0)
            if code in STICKY:
                self.lost = code
            return (real.cudaError_t(code), None) if code else value(*arguments)

        return checked

    @property
    def leaks(self) -> list[object]:
        return [*self.memory, *self.streams, *self.graphs, *self.events]

    def cudaGetErrorName(self, code: Any) -> Any:  # noqa: N802
        return real.cudaGetErrorName(code)

    def cudaGetErrorString(self, code: Any) -> Any:  # noqa: N802
        return real.cudaGetErrorString(code)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return 0, self.gpus

    def cudaSetDevice(self, index: int) -> Any:  # noqa: N802
        self._local.device = index
        return (0,)

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return 0, 13010

    def cudaRuntimeGetVersion(self) -> Any:  # noqa: N802
        return 0, 13000

    def cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        return 0, SimpleNamespace(name=b"Fake GPU\0\0")

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self._allocate("device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        return self._allocate("host", size)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        return self._free("device", address)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return self._free("host", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == 1
        stream = next(self._numbers)
        self.streams[stream] = deque()
        self.devices[stream] = self._device
        return 0, real.cudaStream_t(stream)

    def cudaStreamDestroy(self, stream: Any) -> Any:  # noqa: N802
        del self.streams[int(stream)]
        return (0,)

    def cudaStreamSynchronize(self, stream: Any) -> Any:  # noqa: N802
        if int(stream) in self.capturing:
            return (900,)
        queue = self.streams[int(stream)]
        while queue:
            queue.popleft()()
            self.milliseconds += 1
        return (0,)

    def cudaEventCreate(self) -> Any:  # noqa: N802
        event = next(self._numbers)
        self.events[event] = -1
        return 0, event

    def cudaEventRecord(self, event: int, stream: Any) -> Any:  # noqa: N802
        def stamp() -> None:
            self.events[event] = self.milliseconds
            self.milliseconds -= 1

        self._recorded[event] = stream
        return self.queue(int(stream), stamp)

    def cudaEventSynchronize(self, event: int) -> Any:  # noqa: N802
        return self.cudaStreamSynchronize(self._recorded[event])

    def cudaEventElapsedTime(self, first: int, last: int) -> Any:  # noqa: N802
        assert min(self.events[first], self.events[last]) >= 0
        return 0, self.events[last] - self.events[first]

    def cudaEventDestroy(self, event: int) -> Any:  # noqa: N802
        del self.events[event]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> Any:  # noqa: N802
        if self._room(target) < size or self._room(source) < size:
            return (1,)
        return self.queue(int(stream), lambda: ctypes.memmove(target, source, size))

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:  # noqa: N802
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.capturing[int(stream)] = []
        self.recording = threading.get_ident()
        return (0,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:  # noqa: N802
        self.recording = None
        return 0, self._graph(self.capturing.pop(int(stream)))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:  # noqa: N802
        return 0, self._graph(list(self.graphs[graph]))

    def cudaGraphUpload(self, graph: int, stream: Any) -> Any:  # noqa: N802
        return (0,)

    def cudaGraphLaunch(self, graph: int, stream: Any) -> Any:  # noqa: N802
        self.launches += 1
        for work in self.graphs[graph]:
            self.queue(int(stream), work)
        return (0,)

    def cudaGraphDestroy(self, graph: int) -> Any:  # noqa: N802
        del self.graphs[graph]
        return (0,)

    def cudaGraphExecDestroy(self, graph: int) -> Any:  # noqa: N802
        del self.graphs[graph]
        return (0,)

    def queue(self, stream: int, work: Work) -> tuple[int]:
        if self._device != self.devices[stream]:
            return (400,)
        self.capturing.get(stream, self.streams[stream]).append(work)
        return (0,)

    @property
    def _device(self) -> int:
        return getattr(self._local, "device", 0)

    def _allocate(self, kind: str, size: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(b"\xaa" * (size + 256), size + 256)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self.memory[address] = kind, memory, size
        return 0, address

    def _free(self, kind: str, address: int) -> tuple[int]:
        if address == 0:
            return (0,)
        if self.memory.get(address, ("",))[0] != kind:
            return (1,)
        del self.memory[address]
        return (0,)

    def _room(self, address: int) -> int:
        return self.memory[address][2] if address in self.memory else 0

    def _graph(self, works: list[Work]) -> int:
        graph = next(self._numbers)
        self.graphs[graph] = works
        return graph


class Mode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class FakeTensorRt:
    """Stands for the part of a TensorRT module that runs engines; every engine is the one of ``model``."""

    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    def __init__(self, cuda: FakeCuda, model: Path) -> None:
        self.cuda = cuda
        self.model = model
        self.complaint: str | None = None
        """What the next calls fail with."""
        self.contexts = 0
        self.refuses: set[str] = set()

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(content: bytes) -> FakeEngine | None:
            if "engine" in self.refuses:
                logger.log(logger.Severity.ERROR, "Error Code 1: Serialization (the engine is for another GPU)")
                return None
            return FakeEngine(self, logger)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    device_memory_size_v2 = 1000

    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.session = ort.InferenceSession(trt.model, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.tensors = {value.name: (mode, value) for mode, values in ((1, inputs), (2, outputs)) for value in values}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode(self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> Any:
        types = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT"}
        return SimpleNamespace(name=types[self.tensors[name][1].type])

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.tensors[name][1].shape]

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user"
        if "context" in self.trt.refuses:
            self.logger.log(self.logger.Severity.ERROR, "IEngine: out of memory")
            return None
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.scratch = 0
        self.ran: set[tuple[int, ...]] = set()

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0 and "address" not in self.engine.trt.refuses

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return "shape" not in self.engine.trt.refuses

    def is_stream_capturable(self, stream: int) -> bool:
        return "capture" not in self.engine.trt.refuses

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.trt
        assert self.scratch in trt.cuda.memory
        if trt.complaint:
            self.engine.logger.log(self.engine.logger.Severity.ERROR, trt.complaint)
            return False
        capturing = stream in trt.cuda.capturing
        if capturing and self.shape not in self.ran:
            self.engine.logger.log(
                self.engine.logger.Severity.ERROR, "Cuda Runtime (operation not permitted when stream is capturing)"
            )
            return False
        self.ran.add(self.shape)
        shape, addresses = self.shape, dict(self.addresses)
        return trt.cuda.queue(stream, lambda: self._compute(shape, addresses)) == (0,)

    def _compute(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        session = self.engine.session
        (image,), outputs = session.get_inputs(), [value.name for value in session.get_outputs()]
        dtype = np.uint8 if image.type == "tensor(uint8)" else np.float32
        images = _array(addresses[image.name], shape, dtype)
        for name, values in zip(outputs, session.run(outputs, {image.name: images.copy()}), strict=True):
            _array(addresses[name], values.shape, values.dtype)[:] = values


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
