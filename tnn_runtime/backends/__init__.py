"""The backends that run a bundle: one file each, imported only when it is asked for.

A new backend is a file with a class that satisfies `Backend` and a function ``probe``, a line in `BACKENDS`, and its
name in `tnn_runtime.backends.devices`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.backends.capture import OPENING
from tnn_runtime.backends.devices import DEVICES, Device, parse_device
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.errors import DeviceLost, EngineError, ProviderUnavailable, RunError, UsageError

__all__ = [
    "BACKENDS",
    "CRASHING_OPTIMIZERS",
    "DEVICES",
    "FLOAT32_PRODUCTS",
    "PROBE",
    "Backend",
    "BackendOptions",
    "Device",
    "TimedRun",
    "open_backend",
    "open_device_timer",
    "parse_device",
    "probe_device",
]

BACKENDS = {
    "cpu": ("onnxruntime", "OnnxRuntimeBackend"),
    "compiled": ("compiled", "CompiledBackend"),
    "cuda": ("onnxruntime", "OnnxRuntimeBackend"),
    "tensorrt": ("tensorrt", "TensorRtBackend"),
}
"""For each kind of device the module of this package and the class that runs on it.

The module also has a function ``probe(device)``, which runs the model `PROBE` and tells with what, or raises an error,
and for GPUs ``device_timer(bundle, device, options)``, see `open_device_timer`.
"""

TimedRun: TypeAlias = Callable[[NDArray[np.uint8]], tuple[float, NDArray[np.float32]]]
"""From images ``[N, H, W, C]`` to the seconds that the GPU computes, by its own clock, and to the logits."""

PROBE = Path(__file__).with_name("probe.onnx")
"""A model that adds two float32 numbers ``x`` to themselves and gives ``y``."""


CRASHING_OPTIMIZERS = {"fp16": ("MatmulTransposeFusion",)}
"""What ONNX Runtime has to leave out on the CPU, by precision: with it, 1.23 and later crash on vision transformers. No
other model is faster for it."""

FLOAT32_PRODUCTS = ("fp32", "int8")
"""The precisions whose products ONNX Runtime computes in float32 on CUDA, in int8 between the quantisations. Without
TF32 there, it would keep the others from the tensor cores."""


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is opened with.

    Args:
        threads: CPU threads that one call may use, at least 1.
        max_batch_size: The largest batch that it will get.
        providers: Execution providers of ONNX Runtime to use instead of the device's own, in their order. They are all
            that runs: the CPU gets no node unless ``"CPUExecutionProvider"`` is one of them.
        provider_options: Options of the first provider, as ONNX Runtime spells them.
        spin: Whether idle CPU threads wait actively, which is faster alone and slower in company.
        tf32: Whether float32 products on CUDA may round their factors to 10 bits.
        cuda_graphs: Whether CUDA work is recorded once for each batch size, and replayed.
        cache_dir: Where engines are kept; by default in the cache folder of the user.
    """

    threads: int = 1
    max_batch_size: int = 64
    providers: Sequence[str] | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    spin: bool = False
    tf32: bool = False
    cuda_graphs: bool = False
    cache_dir: Path | None = None


class Backend(Protocol):
    """A model, loaded on one device."""

    device: str
    """Where it really runs: ``"cpu"``, ``"compiled"``, ``"cuda:N"`` or ``"tensorrt:N"``."""

    threads: int
    """CPU threads that one call may use."""

    batch_sizes: tuple[int, ...]
    """The batch sizes that it is prepared for, smallest first; empty where any is as good as another."""

    concurrency: int
    """How many calls of `run` at once keep the device busy; where there are batch sizes, more would wait for them."""

    versions: dict[str, str]
    """The libraries it runs on."""

    details: dict[str, Any]
    """What else tells how it runs: providers, the nodes that each has got, options that change precision."""

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``; N is one of `batch_sizes`, if there are any.

        May be called from several threads at once.

        Args:
            images: The images.
            extra: The outputs beside logits and embedding that come back, too; the manifest has them.

        Raises:
            RunError: If the model fails on these images.
            DeviceLost: If the device has failed for good.
        """
        ...

    def warm_up(self) -> None:
        """Run what first runs are slow for: each batch size, everywhere where it may run.

        Errors are those of `run`.
        """
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def open_backend(bundle: Bundle, device: str, options: BackendOptions) -> tuple[Backend, str]:
    """Load the model of a bundle on ``device``.

    ``"auto"`` takes a compiled program for a bundle that can be one, if this machine has a C compiler. For all others
    it takes the first GPU if CUDA works there, which a run of the smallest batch shows, and else the CPU. It
    never takes TensorRT, which may build an engine for minutes and computes with other kernels: that is for the user to
    choose.

    Returns:
        The backend, and why it runs where it runs.

    Raises:
        UsageError: If there is no such device, or an option that it does not have.
        ProviderUnavailable: If the device does not work on this machine. Only ``"auto"`` tries another one.
        ArtifactError: If the bundle has no model for this backend, or one that it refuses.
    """
    wanted = parse_device(device)
    if wanted.kind == "auto":
        return _open_best(bundle, options)
    return _open(bundle, wanted, options), "as asked"


def open_device_timer(bundle: Bundle, device: str, options: BackendOptions) -> AbstractContextManager[TimedRun]:
    """Load the model of a bundle on a GPU so that the clock of the GPU can be read, which serving has no need of.

    The time runs from when the images have arrived to when the outputs are there to be copied back. The moments in
    which the GPU waits for the host to queue more are part of it.

    Raises:
        ProviderUnavailable: If the device does not work on this machine, or cuda-bindings is missing.
    """
    wanted = parse_device(device)
    module = importlib.import_module(f"{__name__}.{BACKENDS[wanted.kind][0]}")
    timer: AbstractContextManager[TimedRun] = module.device_timer(bundle, wanted, options)
    return timer


def probe_device(device: Device) -> str:
    """Run a tiny model on a device, which is the only proof that it works, and return what ran it.

    Raises:
        TnnError: If the device does not work, with what is missing.
    """
    probe = importlib.import_module(f"{__name__}.{BACKENDS[device.kind][0]}").probe
    with _opening(device):
        what: str = probe(device)
    return what


def _open(bundle: Bundle, device: Device, options: BackendOptions) -> Backend:
    module, name = BACKENDS[device.kind]
    opener = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    with _opening(device):
        backend: Backend = opener(bundle, device, options)
    return backend


def _opening(device: Device) -> AbstractContextManager[Any]:
    return nullcontext() if device.is_cpu else OPENING


def _open_best(bundle: Bundle, options: BackendOptions) -> tuple[Backend, str]:
    if options.providers is not None or options.provider_options:
        raise UsageError(
            "providers and their options were given, and device 'auto' chooses them itself; name the device, such as "
            "'cuda' or 'cpu'"
        )
    manifest = bundle.manifest
    on_cpu = dataclasses.replace(options, cuda_graphs=False)
    told = ""
    if manifest.is_circuit:
        try:
            compiled = _open(bundle, Device("compiled"), on_cpu)
            return compiled, "auto: a compiled program runs logic heads on pixels fastest"
        except (EngineError, ProviderUnavailable) as error:
            told = f"no compiled program ({error}), "
    try:
        cuda = _open(bundle, Device("cuda"), options)
    except ProviderUnavailable as error:
        reason = str(error)
    else:
        try:
            cuda.run(np.zeros((manifest.batch.smallest, *manifest.preprocessing.shape), np.uint8))
            return cuda, f"auto: {told}CUDA works; device 'tensorrt' may be faster, and builds an engine first"
        except (RunError, DeviceLost) as error:
            cuda.close()
            reason = str(error)
    return _open(bundle, Device("cpu"), on_cpu), f"auto: {told}no CUDA ({reason})"
