"""Calls of an ONNX Runtime session whose inputs and outputs stay at the same addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tnn_runtime.backends.cuda import Cuda
from tnn_runtime.backends.failures import failure
from tnn_runtime.backends.ort import ort
from tnn_runtime.backends.slots import Slot, Tensors
from tnn_runtime.bundle.manifest import Manifest

__all__ = ["BoundSlot", "failed_run"]


class BoundSlot(Slot):
    """Inputs and outputs bound once for each batch size; they share the memory of the largest.

    ONNX Runtime computes on streams of its own unless it is given one, so that images must have arrived before it
    starts, and outputs are there when it returns.

    Args:
        session: The session.
        cuda: The GPU that it runs on.
        manifest: Names, types and shapes of the inputs and outputs.
        sizes: The batch sizes, smallest first.
        graphs: Whether the session records CUDA graphs, one for each size.
        memory: What ONNX Runtime calls the memory of the device: ``"cuda"``.
        stream: The stream that the session was given to compute on, if it was.
    """

    def __init__(
        self,
        session: Any,
        cuda: Cuda,
        manifest: Manifest,
        sizes: Sequence[int],
        *,
        graphs: bool = False,
        memory: str = "cuda",
        stream: Any = None,
    ) -> None:
        (images,), outputs = manifest.inputs, manifest.outputs[:2]
        super().__init__(cuda, Tensors(cuda, images, outputs, sizes[-1], stream=stream), sizes)
        self._session: Any = session
        self._wait_for_images = stream is None
        self._bindings: dict[int, tuple[Any, Any]] = {}
        index = cuda.index if memory == "cuda" else 0
        for size in sizes:
            binding = session.io_binding()
            for spec in (images, *outputs):
                bind = binding.bind_input if spec is images else binding.bind_output
                buffer = self._tensors.buffers[spec.name]
                shape = [size, *map(int, buffer.host.shape[1:])]
                bind(spec.name, memory, index, buffer.dtype, shape, buffer.address)
            # ONNX Runtime looks up the graph in any options there are, and where it finds none that costs 50 us.
            options = ort.RunOptions() if graphs else None
            if options is not None:
                options.log_severity_level = 4
                options.add_run_config_entry("gpu_graph_id", str(size))
            self._bindings[size] = binding, options

    def close(self) -> None:
        """Release the bindings, the memory, and the hold on the session."""
        self._bindings.clear()
        self._session = None
        super().close()

    def _compute(self, count: int) -> None:
        binding, options = self._bindings[count]
        if self._wait_for_images:
            self._cuda.wait(self._tensors.stream)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            self._cuda.wait(self._tensors.stream)  # says so if the device is lost, where the message does not
            raise failed_run(count, error) from error


def failed_run(count: int, error: Exception) -> Exception:
    """Return the error for a failed run of ``count`` images."""
    return failure(
        str(error),
        f"ONNX Runtime {ort.__version__} cannot run the model on {count} images",
        "use a smaller batch if memory is short, or export the bundle again",
    )
