"""ONNX Runtime's execution providers: what each needs, what it is asked for, and what it does without being asked."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnn_runtime.backends import FLOAT32_PRODUCTS, BackendOptions, Device
from tnn_runtime.backends.batches import bucket_sizes
from tnn_runtime.backends.libraries import CUDA_MAJOR, driver_problems, missing_libraries
from tnn_runtime.backends.ort import ort
from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.engines.cache import engine_folder
from tnn_runtime.errors import ProviderUnavailable, UsageError
from tnn_runtime.installation import install_command

__all__ = ["CPU", "CUDA", "TENSORRT", "chosen_providers", "cuda_problems", "provider_problems", "require_providers"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_ON_GPU = (CUDA, TENSORRT)
_OURS = {
    "device_id": "the device, such as 'cuda:1'",
    "use_tf32": "tf32=True",
    "enable_cuda_graph": "cuda_graphs=True",
    "trt_cuda_graph_enable": "cuda_graphs=True and device 'tensorrt'",
    "has_user_compute_stream": "nothing, streams are made by ONNX Runtime",
    "user_compute_stream": "nothing, streams are made by ONNX Runtime",
}
"""Options of providers that follow from those of the classifier, and what to ask for instead."""

_TOOLKIT = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_TENSORRT_10 = "pip install 'tensorrt>=10.13,<11'; ONNX Runtime takes no other TensorRT, device 'tensorrt' does"


def chosen_providers(device: Device, manifest: Manifest, options: BackendOptions) -> list[tuple[str, dict[str, str]]]:
    """Return the providers to ask ONNX Runtime for, each with its options.

    Nothing that changes results is on unless it was asked for: no TF32, no FP16 or INT8 switch. The CUDA provider's
    switch against TF32 keeps half precision from the tensor cores, too: it is set for bundles in fp32 and int8 alone.
    The TensorRT provider has no such switch, so that TF32 must be accepted or switched off for the process. Its engines
    are built for the batch sizes of the backend and kept in the engine folder.

    Raises:
        UsageError: If the providers do not fit the device, or an option does not fit the providers.
    """
    names = list(_default(device) if options.providers is None else _names(options.providers))
    on_gpu = [name for name in names if name in _ON_GPU]
    if device.kind == "cpu" and on_gpu:
        raise UsageError(f"device 'cpu' and the provider {on_gpu[0]} were asked for; choose device 'cuda' with it")
    if device.kind == "cuda" and not on_gpu:
        raise UsageError(f"device {str(device)!r} and the providers {names} were asked for; choose {CUDA} among them")
    if options.cuda_graphs and (device.kind == "cpu" or TENSORRT in names):
        raise UsageError(
            "cuda_graphs=True needs CUDA's provider alone (device 'cuda') or native TensorRT (device 'tensorrt'), got "
            f"device {str(device)!r} with {names}"
        )
    asked = dict(options.provider_options)
    if not all(isinstance(text, str) for item in asked.items() for text in item):
        raise UsageError(
            f"provider options {asked!r}; expected names and values as texts, such as {{'gpu_mem_limit': '1000000000'}}"
        )
    for name in asked:
        if name in _OURS:
            raise UsageError(f"provider option {name!r} is set by the classifier; ask for {_OURS[name]} instead")
    if names[0] == CPU and asked:
        raise UsageError(f"{CPU} has no options, got {asked}; leave them out (threads=N sets the number of threads)")
    own = {
        CUDA: _cuda_options(device, manifest, options),
        TENSORRT: _tensorrt_options(device, manifest, options) if TENSORRT in names else {},
    }
    return [(name, own.get(name, {}) | (asked if place == 0 else {})) for place, name in enumerate(names)]


def require_providers(device: object, names: Sequence[str]) -> None:
    """Make sure that these providers can be loaded.

    Raises:
        ProviderUnavailable: If one cannot, with what is missing.
    """
    if problems := [problem for name in names for problem in provider_problems(name)]:
        unique = "; ".join(dict.fromkeys(problems))
        raise ProviderUnavailable(f"device {str(device)!r} does not work here: {unique}; or choose device 'cpu'")


def provider_problems(name: str) -> list[str]:
    """Return what keeps a provider from being loaded, each with its remedy; empty where nothing does.

    Raises:
        ProviderUnavailable: If this ONNX Runtime does not know it.
    """
    available = ort.get_available_providers()
    if name not in available:
        if name in _ON_GPU:
            return [
                f"onnxruntime {ort.__version__} is a CPU-only build (pip uninstall onnxruntime, then "
                f"{install_command('gpu')})"
            ]
        return [f"onnxruntime {ort.__version__} has no {name} (it has {', '.join(available)})"]
    if name == CUDA:
        return cuda_problems()
    return _tensorrt_problems() if name == TENSORRT else []


def cuda_problems() -> list[str]:
    """Return what keeps the CUDA provider from working, each with its remedy; empty where it can be loaded."""
    if CUDA not in ort.get_available_providers():
        return provider_problems(CUDA)
    _preload()
    major = str(getattr(ort, "cuda_version", "") or CUDA_MAJOR).partition(".")[0]
    toolkit = [f"lib{name}.so.{major}" for name in ("cudart", "cublasLt", "cublas")] + ["libcurand.so.10"]
    problems = [*driver_problems(int(major)), *missing_libraries([*toolkit, "libcudnn.so.9"], _TOOLKIT)]
    # The provider names the first library that it lacks; worth asking only where none of the known ones does.
    return problems or missing_libraries([_provider_library("cuda")], _TOOLKIT)


def _preload() -> None:
    """Load the CUDA libraries of installed wheels, without what ONNX Runtime prints about those that are missing.

    Only its own ``print`` is replaced: to redirect the standard output would take it away from other threads, too.
    """
    names = ort.preload_dlls.__globals__
    names["print"] = lambda *words, **options: None
    try:
        ort.preload_dlls()
    finally:
        names.pop("print", None)


def _tensorrt_problems() -> list[str]:
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        importlib.import_module("tensorrt")  # loads the libraries that its wheel brings
    problems = [*cuda_problems(), *missing_libraries(["libnvinfer.so.10", "libnvonnxparser.so.10"], _TENSORRT_10)]
    return problems or missing_libraries([_provider_library("tensorrt")], _TENSORRT_10)


def _provider_library(name: str) -> str:
    return str(Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so")


def _default(device: Device) -> tuple[str, ...]:
    return (CPU,) if device.kind == "cpu" else (CUDA,)


def _names(providers: Any) -> Sequence[str]:
    good = not isinstance(providers, str) and isinstance(providers, Sequence) and len(providers)
    if not good or not all(isinstance(name, str) for name in providers) or len(set(providers)) < len(providers):
        raise UsageError(
            f"providers {providers!r}; expected different names of ONNX Runtime's execution providers in their order, "
            f"such as [{TENSORRT!r}, {CUDA!r}]"
        )
    names: Sequence[str] = providers
    return names


def _cuda_options(device: Device, manifest: Manifest, options: BackendOptions) -> dict[str, str]:
    # Each session sees one batch size, so that its memory need not grow beyond what the first run asks for.
    asked = {"device_id": str(device.index), "arena_extend_strategy": "kSameAsRequested"}
    if manifest.precision in FLOAT32_PRODUCTS:
        asked["use_tf32"] = str(int(options.tf32))
    return asked | ({"enable_cuda_graph": "1"} if options.cuda_graphs else {})


def _tensorrt_options(device: Device, manifest: Manifest, options: BackendOptions) -> dict[str, str]:
    if not options.tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        raise UsageError(
            f"{TENSORRT} rounds float32 products to TF32 and has no option against it; accept that with tf32=True, "
            "set NVIDIA_TF32_OVERRIDE=0 in the environment of the process, or choose device 'tensorrt'"
        )
    sizes = bucket_sizes(manifest.batch, options.max_batch_size)
    (images,) = manifest.inputs
    shapes = {
        f"trt_profile_{which}_shapes": f"{images.name}:{'x'.join(map(str, (size, *manifest.preprocessing.shape)))}"
        for which, size in (("min", sizes[0]), ("opt", sizes[len(sizes) // 2]), ("max", sizes[-1]))
    }
    folder = str(engine_folder(options.cache_dir))
    kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
    timings = {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return {"device_id": str(device.index)} | shapes | kept | timings
