"""Weights that the sessions of a model have in common in the memory of a GPU."""

from __future__ import annotations

from typing import Any

from tnn_runtime.backends.ort import ort
from tnn_runtime.bundle.onnx_file import large_weights

__all__ = ["Weights", "shared_weights"]

_SMALLEST = 1 << 12
"""Bytes. Smaller ones are constants as often as weights, and ONNX Runtime keeps some of those on the CPU."""

Weights = dict[str, Any]
"""Values of ONNX Runtime by the names of their initializers; they must outlive the sessions that share them."""


def shared_weights(model: bytes, device: str, index: int) -> Weights:
    """Copy the weights of convolutions and products once to a device, for all sessions of a model to use in place.

    A session whose optimisers make new weights of them, as for int8, has those for itself.

    Args:
        model: The content of the ONNX file.
        device: What ONNX Runtime calls the memory: ``"cuda"``, or ``"cpu"``.
        index: Which device.
    """
    found = large_weights(model, _SMALLEST)
    return {name: ort.OrtValue.ortvalue_from_numpy(array, device, index) for name, array in found.items()}
