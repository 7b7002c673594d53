"""The backends that run a bundle: one file each, imported only when it is asked for.

A new backend is a file with a class that satisfies `Backend`, and a line in `open_backend`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ProviderUnavailable, UsageError
from tnn_runtime.manifest import Manifest

__all__ = ["DEVICES", "Backend", "BackendOptions", "Outputs", "open_backend"]

DEVICES = "auto, cpu, cuda or cuda:N"


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Args:
        logits: float32 ``[N, classes]``.
        embedding: float32 ``[N, D]``.
    """

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is opened with.

    Args:
        threads: CPU threads that one call may use, at least 1.
        max_batch_size: The largest batch that it will get.
        providers: Execution providers of ONNX Runtime to use instead of the device's own, in their order.
        provider_options: Options of the first provider, as ONNX Runtime spells them.
        spin: Whether idle CPU threads wait actively, which is faster alone and slower in company.
        tf32: Whether float32 products on CUDA may round their factors to 10 bits.
        cuda_graphs: Whether CUDA work is recorded once for each batch size, and replayed.
        cache_dir: Where engines are kept.
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
    """Where it really runs: ``"cpu"``, ``"cuda:N"`` or ``"tensorrt:N"``."""

    threads: int
    """CPU threads that one call may use."""

    batch_sizes: tuple[int, ...]
    """The batch sizes that it is prepared for, smallest first; empty where any is as good as another."""

    concurrency: int
    """How many calls of `run` at once keep the device busy."""

    versions: dict[str, str]
    """The libraries it runs on."""

    details: dict[str, Any]
    """What else tells how it runs: providers, the nodes that each has got, options that change precision."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``; N is one of `batch_sizes`, if there are any.

        May be called from several threads at once.

        Raises:
            RunError: If the model fails on these images.
            DeviceLost: If the device has failed for good.
        """
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def open_backend(folder: Path, manifest: Manifest, device: str, options: BackendOptions) -> tuple[Backend, str]:
    """Load the model in ``folder`` on ``device``.

    Returns:
        The backend, and why it runs where it runs.

    Raises:
        UsageError: If there is no such device.
        ProviderUnavailable: If the device does not work on this machine. Only ``"auto"`` tries another one.
    """
    from tnn_runtime.backends.onnxruntime import OnnxRuntimeBackend

    if device == "auto":
        try:
            return OnnxRuntimeBackend(folder, manifest, "cuda:0", options), "auto: CUDA works"
        except ProviderUnavailable as error:
            return OnnxRuntimeBackend(folder, manifest, "cpu", options), f"auto: no CUDA ({error})"
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"unknown device {device!r}; choose {DEVICES}")
    return OnnxRuntimeBackend(folder, manifest, "cuda:0" if device == "cuda" else device, options), "as asked"
