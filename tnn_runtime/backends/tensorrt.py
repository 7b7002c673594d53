"""TensorRT 10, TensorRT 11 or TensorRT for RTX, without ONNX Runtime."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.backends import PROBE, BackendOptions, Device, TimedRun
from tnn_runtime.backends.batches import bucket_sizes
from tnn_runtime.backends.capture import OPENING
from tnn_runtime.backends.cuda import Cuda, Graph, cuda_runtime
from tnn_runtime.backends.failures import failure
from tnn_runtime.backends.libraries import driver_problems
from tnn_runtime.backends.slots import AT_ONCE, Slot, Slots, Tensors
from tnn_runtime.bundle.manifest import ONNX_FILE, TensorSpec
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.engines import Library, build_engine, engine_folder, find_tensorrt, read_engine
from tnn_runtime.engines.library import collecting_logger
from tnn_runtime.errors import ArtifactError, EngineError, NotAnswered, ProviderUnavailable, RunError, UsageError

__all__ = ["EngineSlot", "LoadedEngine", "TensorRtBackend", "probe", "require_tensorrt", "tensorrt_problems"]

_TYPES = {"uint8": "UINT8", "float32": "FLOAT"}


class TensorRtBackend:
    """The ONNX model of a bundle as a TensorRT engine.

    The engine is taken from the engine folder, or built, which may take minutes. It has the types of the graph, so that
    a bundle in fp16 runs in fp16 and one in fp32 in fp32, with TF32 only if that was asked for. Two calls overlap, each
    with an execution context, a stream and page-locked buffers of its own, and each of the two has run every batch size
    when it is opened. With CUDA graphs these first runs are recorded, and replayed from then on.

    Args:
        bundle: The bundle, with whose manifest the engine must agree.
        device: The GPU.
        options: How to run it. ``providers`` and ``provider_options`` are ONNX Runtime's, and refused here.

    Raises:
        UsageError: If an option is not for TensorRT.
        ProviderUnavailable: If TensorRT, cuda-bindings, the driver or the GPU is missing, or memory is.
        ArtifactError: If the bundle has no ONNX model, TensorRT refuses it, or it is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, device: Device, options: BackendOptions) -> None:
        engine, manifest = _load(bundle, device, options), bundle.manifest
        self.device = str(device)
        self.threads = options.threads
        self.batch_sizes = sizes = bucket_sizes(manifest.batch, options.max_batch_size)
        self.concurrency = AT_ONCE
        self.versions = {engine.library.kind: engine.library.version} | engine.cuda.versions()
        self.details = {
            "engine": str(engine.path),
            "gpu": engine.cuda.name(),
            "memory": "page-locked",
            "tf32": options.tf32,
            "cuda_graphs": options.cuda_graphs,
        }
        (images,) = manifest.inputs
        made: list[EngineSlot] = []
        try:
            for _ in range(self.concurrency):
                made.append(EngineSlot(engine, images, manifest.outputs, sizes, options.cuda_graphs))
                made[-1].warm_up()
        except NotAnswered as error:
            Slots(made).close()
            raise ProviderUnavailable(
                f"device {self.device!r} cannot be prepared for batches of {sizes[0]} to {sizes[-1]} ({error}); choose "
                "a smaller max_batch_size"
            ) from error
        self._slots = Slots(made)

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``, where N is one of `batch_sizes`.

        The engine computes all outputs in every run; those beside logits and embedding are copied if they are asked
        for.

        Raises:
            RunError: If TensorRT fails on these images.
            DeviceLost: If the device failed for good.
        """
        logits, embedding, *others = self._slots.run(images, extra)
        return Outputs(logits, embedding, dict(zip(extra, others, strict=True)))

    def warm_up(self) -> None:
        """Do nothing: each batch size has run in each slot when this was opened."""

    def close(self) -> None:
        """Release the engine, after the calls that run. Closing twice is fine."""
        self._slots.close()


@contextmanager
def device_timer(bundle: Bundle, device: Device, options: BackendOptions) -> Iterator[TimedRun]:
    """Run the engine of the backend in a slot whose time is taken; see `open_device_timer`."""
    manifest = bundle.manifest
    (images,) = manifest.inputs
    sizes = bucket_sizes(manifest.batch, options.max_batch_size)
    with contextlib.ExitStack() as opened:
        with OPENING:
            engine = _load(bundle, device, options)
            slot = EngineSlot(engine, images, manifest.outputs, sizes, options.cuda_graphs)
            opened.callback(Slots([slot]).close)
            slot.warm_up()
        yield slot.timed_run


def _load(bundle: Bundle, device: Device, options: BackendOptions) -> LoadedEngine:
    folder, manifest = bundle.folder, bundle.manifest
    if ONNX_FILE not in manifest.files:
        raise ArtifactError(f"{folder} lists no {ONNX_FILE}, which engines are built from; export with --formats onnx")
    if options.providers is not None or options.provider_options:
        raise UsageError(
            f"device {str(device)!r} is TensorRT itself and has no execution providers; leave providers and their "
            "options out, or choose device 'cuda' with providers=['TensorrtExecutionProvider']"
        )
    library = require_tensorrt(device)
    cuda = Cuda(device.index)
    cuda.use()
    (images,) = manifest.inputs
    sizes = bucket_sizes(manifest.batch, options.max_batch_size)
    with bundle.model_on_disk() as model:
        path = build_engine(
            model,
            engine_folder(options.cache_dir),
            input_name=images.name,
            shape=manifest.preprocessing.shape,
            batch=(sizes[0], sizes[len(sizes) // 2], sizes[-1]),
            library=library,
            tf32=options.tf32,
            gpu=device.index,
        )
    engine = LoadedEngine(library, cuda, path)
    engine.check(images, manifest.outputs)
    return engine


class LoadedEngine:
    """An engine on a GPU.

    Args:
        library: The TensorRT that built it.
        cuda: The GPU.
        path: The file.

    Raises:
        EngineError: If it is not the file that was built, or TensorRT does not load it.
    """

    def __init__(self, library: Library, cuda: Cuda, path: Path) -> None:
        self.library = library
        self.cuda = cuda
        self.path = path
        self.complaints: deque[str] = deque(maxlen=5)
        """What TensorRT said last."""
        trt = library.module
        self._logger = collecting_logger(trt, self.complaints)
        cuda.use()
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(read_engine(path))
        if self._engine is None:
            raise EngineError(f"{library} does not load {path} ({self.said()}); remove it, and it is built again")

    def said(self) -> str:
        """Return what TensorRT complained of since the last call."""
        said = "; ".join(self.complaints)[:300] or "no reason given"
        self.complaints.clear()
        return said

    def tensor_names(self) -> list[str]:
        """Return the names of the inputs and outputs."""
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def check(self, images: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
        """Compare its tensors with what they should be.

        Raises:
            ArtifactError: If they are different.
        """
        engine, modes = self._engine, self.library.module.TensorIOMode
        found = {
            name: (
                engine.get_tensor_mode(name) == modes.INPUT,
                engine.get_tensor_dtype(name).name,
                tuple(engine.get_tensor_shape(name))[1:],
            )
            for name in self.tensor_names()
        }
        expected = {
            spec.name: (spec is images, _TYPES.get(spec.dtype), tuple(spec.shape[1:])) for spec in (images, *outputs)
        }
        if found != expected:
            raise ArtifactError(
                f"{self.path} has the tensors {found} where the manifest has {expected}; export the bundle again"
            )

    def scratch_size(self) -> int:
        """Return how many bytes of the GPU a context needs for the largest batch."""
        return int(self._engine.device_memory_size_v2)

    def context(self, scratch: int) -> Any:
        """Return a new execution context.

        Args:
            scratch: Address of `scratch_size` bytes, which contexts that never run at once may share.

        Raises:
            RunError: If there is not enough memory for what else it needs.
        """
        strategy = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise RunError(f"{self} makes no execution context ({self.said()}); free memory of the GPU")
        context.set_device_memory(scratch, self.scratch_size())
        return context

    def __str__(self) -> str:
        return str(self.library)


class EngineSlot(Slot):
    """An execution context with a stream and buffers of its own.

    Args:
        engine: The engine.
        images: Its input.
        outputs: Its outputs; the first two come back.
        sizes: The batch sizes, smallest first.
        graphs: Whether work is recorded once for each batch size.
        wanted: How many of the outputs, from the first on, come back to the host.
    """

    def __init__(
        self,
        engine: LoadedEngine,
        images: TensorSpec,
        outputs: Sequence[TensorSpec],
        sizes: Sequence[int],
        graphs: bool,
        wanted: int = 2,
    ) -> None:
        super().__init__(engine.cuda, Tensors(engine.cuda, images, outputs, sizes[-1], wanted), sizes, graphs)
        self._engine = engine
        self._input = images.name
        self._shaped: dict[int, int] = {}
        self._recorded: dict[int, Graph] = {}
        self._scratch = 0
        self._contexts: dict[int, Any] = {}
        try:
            self._scratch = engine.cuda.allocate(max(engine.scratch_size(), 1))
            for size in sizes:
                # What a graph replays is tied to its context and the shape that this had.
                shared = None if graphs else next(iter(self._contexts.values()), None)
                self._contexts[size] = self._context() if shared is None else shared
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the contexts and the memory."""
        self._cuda.use()
        for graph in self._recorded.values():
            graph.close()
        self._contexts.clear()
        self._cuda.free(self._scratch)
        super().close()

    def _compute(self, count: int) -> None:
        if count in self._recorded:
            self._recorded[count].launch(self._tensors.stream)
        else:
            self._queue(count)

    def _context(self) -> Any:
        context = self._engine.context(self._scratch)
        for name, buffer in self._tensors.buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise RunError(f"{self._engine} takes no address for {name!r} ({self._engine.said()}); report this")
        return context

    def _record(self, count: int) -> None:
        stream = self._tensors.stream
        may_record = getattr(self._contexts[count], "is_stream_capturable", None)  # TensorRT for RTX alone has it
        if may_record is not None and not may_record(int(stream)):
            raise RunError(f"{self._engine} cannot record batches of {count}; load the bundle without cuda_graphs")
        self._recorded[count] = self._cuda.record(stream, lambda: self._queue(count))

    def _queue(self, count: int) -> None:
        context, engine, stream = self._contexts[count], self._engine, self._tensors.stream
        shape = (count, *self._tensors.images.host.shape[1:])
        key = id(context)
        shaped = self._shaped.get(key) == count or context.set_input_shape(self._input, shape)
        self._shaped[key] = count if shaped else 0
        if not shaped or not context.execute_async_v3(int(stream)):
            said = engine.said()
            self._cuda.wait(stream)  # says so if the device is lost
            raise failure(
                said, f"{engine} cannot run the model on {count} images", "use a smaller batch, or device 'cuda'"
            )


def probe(device: Device) -> str:
    """Build and run a tiny model on a device and return what ran it.

    Raises:
        TnnError: If that does not work.
    """
    library = require_tensorrt(device)
    cuda = Cuda(device.index)
    cuda.use()
    numbers, sums = (TensorSpec(name, "float32", (None,)) for name in "xy")
    with tempfile.TemporaryDirectory() as folder:
        path = build_engine(PROBE, folder, input_name="x", shape=(), batch=(2, 2, 2), library=library, gpu=device.index)
        engine = LoadedEngine(library, cuda, path)
    slots = Slots([EngineSlot(engine, numbers, [sums], (2,), graphs=False)])
    try:
        (result,) = slots.run(np.ones(2, np.float32))
    finally:
        slots.close()
    if result.tolist() != [2.0, 2.0]:
        raise RunError(f"device {str(device)!r} computed 1 + 1 = {result.tolist()}; do not use it")
    return f"runs a model with {library} on {cuda.name()}"


def require_tensorrt(device: object) -> Library:
    """Return the TensorRT that is installed.

    Raises:
        ProviderUnavailable: If something that it needs is missing; all of it is named.
    """
    if problems := tensorrt_problems():
        raise ProviderUnavailable(
            f"device {str(device)!r} does not work here: {'; '.join(problems)}; or choose device 'cuda' or 'cpu'"
        )
    return find_tensorrt()


def tensorrt_problems() -> list[str]:
    """Return what keeps native TensorRT from working, each with its remedy; empty where it can be loaded."""
    problems = []
    for needed in (find_tensorrt, cuda_runtime):
        try:
            needed()
        except ProviderUnavailable as error:
            problems.append(str(error))
    return problems + driver_problems()
