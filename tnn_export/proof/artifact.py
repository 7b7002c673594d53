"""Runs one artifact with nothing but its own library, in a process of its own: a program, not a module to import.

    python artifact.py FORMAT FILE BATCHES OUTPUTS DEVICE THREADS [FLOAT32 OPTIMIZER...]

BATCHES is an ``.npz`` file of uint8 arrays ``[n, H, W, C]`` named ``0``, ``1`` and so on; OUTPUTS is the ``.npz`` file
to write, with an array ``I/NAME`` for each batch I and each output. Two things are for ONNX Runtime alone: whether its
products are of float32, ``True`` or ``False``, which TF32 is then kept from, and OPTIMIZERs that it is to leave out.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Run = Callable[[NDArray[np.uint8]], Arrays]


def onnx(file: str, device: str, threads: int, in_float32: str, *without: str) -> tuple[Run, str]:
    """Load a ``.onnx`` file with ONNX Runtime, which does without some of its optimizers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as tnn_runtime does
    import onnxruntime

    on_cpu = device == "cpu"
    asked = {"device_id": device.partition(":")[2] or "0"} | ({"use_tf32": "0"} if in_float32 == "True" else {})
    providers: list[Any] = ["CPUExecutionProvider"] if on_cpu else [("CUDAExecutionProvider", asked)]
    if not on_cpu:
        onnxruntime.preload_dlls()

    @functools.cache
    def session_for(batch: int | None) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if batch is not None:  # as it is served: a session for each size, and nothing for the CPU to do
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            options.add_free_dimension_override_by_name("batch", batch)
        session = onnxruntime.InferenceSession(file, options, providers=providers, disabled_optimizers=without or None)
        if not on_cpu and session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError(f"{device} was asked for, and ONNX Runtime chose {session.get_providers()}")
        return session

    def run(images: NDArray[np.uint8]) -> Arrays:
        session = session_for(None if on_cpu else len(images))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run, " without ".join([f"onnxruntime {onnxruntime.__version__}", *without])


def torchscript(file: str, device: str, threads: int) -> tuple[Run, str]:
    """Load a ``.ts`` file with ``torch.jit.load``."""
    return _torch(lambda torch: torch.jit.load(file, map_location=device), device, threads)


def pt2(file: str, device: str, threads: int) -> tuple[Run, str]:
    """Load a ``.pt2`` file with ``torch.export.load``."""

    def load(torch: Any) -> Any:
        program = torch.export.load(file)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program.module()

    return _torch(load, device, threads)


def tensorrt(file: str, device: str, threads: int) -> tuple[Run, str]:
    """Load an engine with the TensorRT that built it; PyTorch holds the memory of inputs and outputs."""
    import importlib

    import torch

    module = "tensorrt_rtx_bindings" if "-tensorrt_rtx-" in file.rpartition("/")[2] else "tensorrt"
    trt: Any = importlib.import_module(module)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    with open(file, "rb") as content:
        engine = runtime.deserialize_cuda_engine(content.read())
    if engine is None:
        raise RuntimeError("TensorRT refuses the engine; it was built for another GPU or version")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(images: NDArray[np.uint8]) -> Arrays:
        inputs = torch.from_numpy(images).to(device)
        context.set_input_shape("images", tuple(images.shape))
        context.set_tensor_address("images", inputs.data_ptr())
        outputs = {
            name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=device)
            for name in names
            if name != "images"
        }
        for name, value in outputs.items():
            context.set_tensor_address(name, value.data_ptr())
        torch.cuda.synchronize(device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT failed on a batch of {len(images)}")
        stream.synchronize()
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    return run, f"{module} {trt.__version__}"


def _torch(load: Callable[[Any], Any], device: str, threads: int) -> tuple[Run, str]:
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    module = load(torch)

    def run(images: NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(images).to(device))
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    return run, f"torch {torch.__version__}"


LOADERS: dict[str, Callable[..., tuple[Run, str]]] = {
    "onnx": onnx,
    "torchscript": torchscript,
    "pt2": pt2,
    "tensorrt": tensorrt,
}


def main(kind: str, file: str, batches: str, outputs: str, device: str, threads: str, *how: str) -> None:
    """Load the artifact, run every batch, write what came out, and print what ran it."""
    warnings.simplefilter("ignore")
    run, library = LOADERS[kind](file, device, int(threads), *how)
    results: Arrays = {}
    with np.load(batches, allow_pickle=False) as inputs:
        for name in inputs.files:
            results |= {f"{name}/{output}": value for output, value in run(inputs[name]).items()}
    np.savez(outputs, **results)  # type: ignore[arg-type]
    print(json.dumps({"library": library}))


if __name__ == "__main__":
    main(*sys.argv[1:])
