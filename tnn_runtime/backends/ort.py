"""ONNX Runtime itself, or the error that tells how to install it."""

from __future__ import annotations

from tnn_runtime.errors import ProviderUnavailable

try:
    import onnxruntime as ort
except ImportError as error:
    raise ProviderUnavailable(
        f"ONNX Runtime cannot be imported ({error}); install it with: pip install 'tnn-deploy[cpu]' or "
        "'tnn-deploy[gpu]'"
    ) from error

__all__ = ["ort"]
