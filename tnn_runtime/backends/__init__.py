"""The backends that run a bundle: one file each, imported only when it is asked for.

A new backend is a file with a class that satisfies `Backend`, and a line in `open_backend`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import ProviderUnavailable, UsageError
from tnn_runtime.manifest import Manifest

__all__ = ["DEVICES", "Backend", "open_backend"]

DEVICES = "auto, cpu, cuda or cuda:N"


class Backend(Protocol):
    """A model, loaded on one device."""

    device: str
    """Where it really runs: ``"cpu"`` or ``"cuda:N"``."""

    threads: int
    """CPU threads that one call may use."""

    versions: dict[str, str]
    """The libraries it runs on."""

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``(logits [N, classes], embedding [N, D])`` of images ``[N, H, W, C]``."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def open_backend(folder: Path, manifest: Manifest, device: str, threads: int) -> tuple[Backend, str]:
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
            return OnnxRuntimeBackend(folder, manifest, "cuda:0", threads), "auto: CUDA works"
        except ProviderUnavailable as error:
            return OnnxRuntimeBackend(folder, manifest, "cpu", threads), f"auto: no CUDA ({error})"
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"unknown device {device!r}; choose {DEVICES}")
    return OnnxRuntimeBackend(folder, manifest, "cuda:0" if device == "cuda" else device, threads), "as asked"
