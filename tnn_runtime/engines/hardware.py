"""The GPUs that an engine is built for."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from tnn_runtime.engines.library import Library
from tnn_runtime.errors import ProviderUnavailable

__all__ = ["DRIVER", "build_target"]

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The shared library of NVIDIA's driver."""

_COMPUTE_CAPABILITY = (75, 76)
_RTX_TARGET = "ampere_and_later"


def build_target(library: Library, index: int = 0) -> str:
    """Return what an engine of this library runs on.

    TensorRT times its kernels on a GPU and its engines are for that model of GPU. TensorRT for RTX looks at no GPU
    while it builds: by default its engines are for any GPU that it supports from compute capability 8.0 on, and are
    compiled to the end where they are loaded.

    Args:
        library: The TensorRT.
        index: Which GPU, as CUDA counts those that ``CUDA_VISIBLE_DEVICES`` leaves.

    Returns:
        ``"ampere_and_later"``, or for example ``"sm90-NVIDIA H100 80GB HBM3"``.

    Raises:
        ProviderUnavailable: If TensorRT needs a GPU and there is none.
    """
    return _RTX_TARGET if library.kind == "tensorrt_rtx" else _gpu(library, index)


def _gpu(library: Library, index: int) -> str:
    way_out = "build on the machine that will serve the model, or with TensorRT for RTX, which needs no GPU"
    try:
        driver: Any = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ProviderUnavailable(
            f"{library} builds engines on an NVIDIA GPU, and its driver is not here ({error}); {way_out}"
        ) from error

    def call(function: str, *arguments: object) -> None:
        if code := getattr(driver, function)(*arguments):
            raise ProviderUnavailable(
                f"{library} builds engines on an NVIDIA GPU, and none works here ({function}: CUDA error {code}); "
                f"{way_out}"
            )

    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    capability = [ctypes.c_int() for _ in _COMPUTE_CAPABILITY]
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDeviceGetName", name, len(name), device)
    for value, attribute in zip(capability, _COMPUTE_CAPABILITY, strict=True):
        call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return f"sm{''.join(str(value.value) for value in capability)}-{name.value.decode(errors='replace')}"
