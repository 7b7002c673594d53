"""ONNX Runtime itself, or the error that tells how to install it.

Newer versions, such as 1.31, gather data about how they are used: they keep them in the user's cache folder and send
them to Microsoft. The variable ``ORT_DISABLE_TELEMETRY``, which is looked at during the import, turns that off; it is
set here, unless it has a value already.
"""

from __future__ import annotations

import os

from tnn_runtime.errors import ProviderUnavailable
from tnn_runtime.installation import install_command

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ImportError as error:
    raise ProviderUnavailable(
        f"ONNX Runtime cannot be imported ({error}); install it for the CPU with {install_command('cpu')}, or for CUDA "
        f"with {install_command('gpu')}"
    ) from error

__all__ = ["ort"]
