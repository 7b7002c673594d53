"""ONNX Runtime itself, or the error that tells how to install it."""

from __future__ import annotations

from tnn_runtime.errors import ProviderUnavailable
from tnn_runtime.installation import install_command

try:
    import onnxruntime as ort
except ImportError as error:
    raise ProviderUnavailable(
        f"ONNX Runtime cannot be imported ({error}); install it for the CPU with {install_command('cpu')}, or for CUDA "
        f"with {install_command('gpu')}"
    ) from error

__all__ = ["ort"]
