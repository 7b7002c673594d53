"""Memory, streams and recorded graphs of one GPU, through the package cuda-bindings. Every return code is checked."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tnn_runtime.backends.failures import failure
from tnn_runtime.backends.libraries import CUDA_MAJOR, driver_problems
from tnn_runtime.errors import NotAnswered, ProviderUnavailable

__all__ = ["Buffer", "Cuda", "Graph", "cuda_runtime"]

_NON_BLOCKING = 1
"""`cudaStreamNonBlocking`: the stream does not wait for the default stream, nor that for it."""


def cuda_runtime() -> Any:
    """Return the module ``cuda.bindings.runtime``.

    Raises:
        ProviderUnavailable: If it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError, RuntimeError) as error:
        raise ProviderUnavailable(
            f"cuda-bindings cannot be imported ({error}); install it with: pip install 'cuda-bindings>=13,<14'"
        ) from error
    return runtime


class Cuda:
    """One GPU.

    Args:
        index: Which one, as CUDA counts.

    Raises:
        ProviderUnavailable: If cuda-bindings is not installed, or there is no such GPU, or it does not work.
    """

    def __init__(self, index: int) -> None:
        self._runtime = cuda_runtime()
        self.index = index
        try:
            (count,) = self._call("cudaGetDeviceCount")
            if index < count:
                self.use()
                self._call("cudaFree", 0)  # makes the context, which fails where the GPU cannot be used
        except NotAnswered as error:
            remedy = f"install a driver for CUDA {CUDA_MAJOR} on a machine with an NVIDIA GPU"
            raise ProviderUnavailable(
                f"no GPU works here ({error}); {'; '.join(driver_problems()) or remedy}"
            ) from error
        if index >= count:
            raise ProviderUnavailable(
                f"there is no GPU {index}, CUDA shows {count} of them, counted from 0; choose another, or look at "
                "CUDA_VISIBLE_DEVICES"
            )

    def use(self) -> None:
        """Make it the GPU of this thread; each thread that calls anything else has to do so first."""
        self._call("cudaSetDevice", self.index)

    def stream(self) -> Any:
        """Return a new stream, that is a queue of work in order."""
        (stream,) = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        return stream

    def wait(self, stream: Any) -> None:
        """Wait until all work of a stream is done.

        Raises:
            RunError: If it failed.
            DeviceLost: If it failed for good.
        """
        self._call("cudaStreamSynchronize", stream)

    def seconds(self, stream: Any, work: Callable[[], None]) -> float:
        """Return how long the GPU takes for the work that a function queues on a stream, by its own clock.

        What the function waits for counts too, where the GPU waits with it.
        """
        with self._event() as first, self._event() as last:
            self._call("cudaEventRecord", first, stream)
            work()
            self._call("cudaEventRecord", last, stream)
            self._call("cudaEventSynchronize", last)
            (milliseconds,) = self._call("cudaEventElapsedTime", first, last)
        return float(milliseconds) / 1e3

    def destroy(self, stream: Any) -> None:
        """Release a stream."""
        self._call("cudaStreamDestroy", stream)

    def allocate(self, size: int) -> int:
        """Return the address of new memory of the GPU, aligned to 256 bytes."""
        (address,) = self._call("cudaMalloc", size)
        return int(address)

    def free(self, address: int) -> None:
        """Release memory of the GPU."""
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """Return the address of new page-locked memory of the host, which the GPU reads and writes by itself."""
        (address,) = self._call("cudaHostAlloc", size, 0)
        return int(address)

    def free_host(self, address: int) -> None:
        """Release page-locked memory."""
        self._call("cudaFreeHost", address)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy between addresses of the host and the GPU; which is which follows from the addresses."""
        self._call("cudaMemcpyAsync", target, source, size, self._runtime.cudaMemcpyKind.cudaMemcpyDefault, stream)

    def record(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Record the work that a function queues on a stream, without doing it."""
        # Thread-local: calls of other threads, such as the runs of another slot, neither disturb it nor are disturbed.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(NotAnswered):  # the capture was broken by what failed
                (broken,) = self._call("cudaStreamEndCapture", stream)
                self._call("cudaGraphDestroy", broken)
            raise
        (graph,) = self._call("cudaStreamEndCapture", stream)
        try:
            (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        self._call("cudaGraphUpload", executable, stream)
        return Graph(self._call, executable)

    def versions(self) -> dict[str, str]:
        """Return the versions of CUDA that the driver supports and that cuda-bindings is made for."""
        return {
            name: f"{version // 1000}.{version % 1000 // 10}"
            for name, function in (("cuda driver", "cudaDriverGetVersion"), ("cuda runtime", "cudaRuntimeGetVersion"))
            for (version,) in [self._call(function)]
        }

    def name(self) -> str:
        """Return the name of the GPU."""
        (properties,) = self._call("cudaGetDeviceProperties", self.index)
        return bytes(properties.name).split(b"\0")[0].decode(errors="replace")

    @contextmanager
    def _event(self) -> Iterator[Any]:
        (event,) = self._call("cudaEventCreate")
        try:
            yield event
        finally:
            with contextlib.suppress(NotAnswered):  # what the work failed with is told, or the device is lost
                self._call("cudaEventDestroy", event)

    def _call(self, function: str, *arguments: object) -> tuple[Any, ...]:
        status, *values = getattr(self._runtime, function)(*arguments)
        if code := int(status):
            raise failure(
                f"CUDA error {code}: {self._text(status)}",
                f"{function} failed",
                "use a smaller batch if memory is short",
                code=code,
            )
        return tuple(values)

    def _text(self, status: Any) -> str:
        (_, name), (_, text) = self._runtime.cudaGetErrorName(status), self._runtime.cudaGetErrorString(status)
        return f"{name.decode()}, {text.decode()}"


class Graph:
    """Recorded work, which is queued again at the cost of one call."""

    def __init__(self, call: Callable[..., tuple[Any, ...]], executable: Any) -> None:
        self._call = call
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Queue the work on a stream; one at a time."""
        self._call("cudaGraphLaunch", self._executable, stream)

    def close(self) -> None:
        """Release it."""
        self._call("cudaGraphExecDestroy", self._executable)


class Buffer:
    """A tensor twice: in page-locked memory of the host and in memory of the GPU.

    Args:
        cuda: The GPU.
        shape: The largest shape; the first dimension is the batch, of which less can be used.
        dtype: Its type.
    """

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._cuda = cuda
        self._row = self.dtype.itemsize * math.prod(shape[1:])
        size = max(self._row * shape[0], 1)
        self.address = cuda.allocate(size)
        """Where it is on the GPU."""
        try:
            self._host_address = cuda.allocate_host(size)
        except NotAnswered:
            cuda.free(self.address)
            raise
        memory = (ctypes.c_uint8 * size).from_address(self._host_address)
        self.host: NDArray[Any] = np.ctypeslib.as_array(memory)[: self._row * shape[0]].view(self.dtype).reshape(shape)
        """The page-locked memory."""

    def upload(self, count: int, stream: Any) -> None:
        """Queue the copy of the first ``count`` rows to the GPU."""
        self._cuda.copy(self.address, self._host_address, count * self._row, stream)

    def download(self, count: int, stream: Any) -> None:
        """Queue the copy of the first ``count`` rows from the GPU."""
        self._cuda.copy(self._host_address, self.address, count * self._row, stream)

    def close(self) -> None:
        """Release both; `host` must not be touched any more."""
        self.host = np.empty(0, self.dtype)
        self._cuda.free_host(self._host_address)
        self._cuda.free(self.address)
