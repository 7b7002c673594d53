"""Calls of ONNX Runtime sessions whose inputs and outputs stay at the same addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from tnn_runtime.backends.cuda import Cuda
from tnn_runtime.backends.failures import failure
from tnn_runtime.backends.ort import ort
from tnn_runtime.backends.slots import Slot, Tensors
from tnn_runtime.bundle.manifest import Manifest

__all__ = ["ALWAYS", "BoundSlot", "failed_run"]

ALWAYS = ("logits", "embedding")
"""The outputs that every run returns, in their order."""

_NOT_RECORDED = -1


class BoundSlot(Slot):
    """Inputs and outputs bound once for each batch size; they share the memory of the largest.

    A session plans its convolutions again whenever the batch size changes, and forgets the plans of before. With a
    session for each size nothing is planned after the first run, and what a recorded graph was planned with stays.

    ONNX Runtime computes on streams of its own unless it is given one, so that images must have arrived before it
    starts, and outputs are there when it returns.

    Outputs beyond the first two are large and seldom asked for. They have no memory of their own on the GPU: a run that
    returns them is not bound, goes through pageable memory, and is not recorded.

    Args:
        sessions: The session that runs batches of each size.
        cuda: The GPU that they run on.
        manifest: Names, types and shapes of the inputs and outputs.
        graphs: Whether the sessions record CUDA graphs, one for each size; all runs are then in one thread.
        memory: What ONNX Runtime calls the memory of the device: ``"cuda"``.
        stream: The stream that the sessions were given to compute on, if they were.
    """

    def __init__(
        self,
        sessions: Mapping[int, Any],
        cuda: Cuda,
        manifest: Manifest,
        *,
        graphs: bool = False,
        memory: str = "cuda",
        stream: Any = None,
    ) -> None:
        (images,), outputs, sizes = manifest.inputs, manifest.outputs[:2], sorted(sessions)
        super().__init__(cuda, Tensors(cuda, images, outputs, sizes[-1], stream=stream), sizes, graphs)
        self._wait_for_images = stream is None
        self._input = images.name
        self._calls: dict[int, tuple[Any, Any, Any]] = {}
        # ONNX Runtime looks up the graph in any options there are, and where it finds none that costs 50 us.
        self._unrecorded = _recording(_NOT_RECORDED) if graphs else None
        index = cuda.index if memory == "cuda" else 0
        for size in sizes:
            binding = sessions[size].io_binding()
            for spec in (images, *outputs):
                bind = binding.bind_input if spec is images else binding.bind_output
                buffer = self._tensors.buffers[spec.name]
                shape = [size, *map(int, buffer.host.shape[1:])]
                bind(spec.name, memory, index, buffer.dtype, shape, buffer.address)
            self._calls[size] = sessions[size], binding, self._unrecorded

    def run(self, images: NDArray[Any], extra: tuple[str, ...] = ()) -> list[NDArray[Any]]:
        """Return the outputs for a batch; arguments and errors are those of `Slot.run`."""
        if not extra:
            return super().run(images)
        count = len(images)
        self._check_size(count)
        session, _, _ = self._calls[count]
        with self._running():
            outputs: list[NDArray[Any]] = self._call(
                count, session.run, ALWAYS + extra, {self._input: images}, self._unrecorded
            )
        return outputs

    def close(self) -> None:
        """Release the bindings, the memory, and the hold on the sessions."""
        self._calls.clear()
        super().close()

    def _compute(self, count: int) -> None:
        session, binding, options = self._calls[count]
        if self._wait_for_images:
            self._cuda.wait(self._tensors.stream)
        self._call(count, session.run_with_iobinding, binding, options)

    def _call(self, count: int, run: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a run of ``count`` images returns."""
        try:
            return run(*arguments)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            self._cuda.wait(self._tensors.stream)  # says so if the device is lost, where the message does not
            raise failed_run(count, error) from error

    def _record(self, count: int) -> None:
        self._calls[count] = *self._calls[count][:2], _recording(count)
        self._compute(count)


def _recording(number: int) -> Any:
    """Return options for runs that are recorded under a number, the first of them, and replayed, the others."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def failed_run(count: int, error: Exception) -> Exception:
    """Return the error for a failed run of ``count`` images."""
    return failure(
        str(error),
        f"ONNX Runtime {ort.__version__} cannot run the model on {count} images",
        "use a smaller batch if memory is short, or export the bundle again",
    )
