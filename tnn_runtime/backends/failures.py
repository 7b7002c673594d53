"""What a failed call on a GPU means: this batch has failed, or the device is lost to this process.

CUDA's errors of the second kind stick: once one has happened, every later call of the process gives it again, and only
a new process can use the GPU (CUDA Runtime API, "Data types used by CUDA Runtime", `cudaError_t`).
"""

from __future__ import annotations

import re

from tnn_runtime.errors import DeviceLost, RunError

__all__ = ["FATAL", "complaint", "failure"]

FATAL = {
    3: ("cudaErrorInitializationError", "initialization error"),
    4: ("cudaErrorCudartUnloading", "driver shutting down"),
    46: ("cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    201: ("cudaErrorDeviceUninitialized", "invalid device context"),
    214: ("cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    220: ("cudaErrorNvlinkUncorrectable", "uncorrectable NVLink error detected during the execution"),
    226: ("cudaErrorContained", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    702: ("cudaErrorLaunchTimeout", "the launch timed out and was terminated"),
    709: ("cudaErrorContextIsDestroyed", "context is destroyed"),
    710: ("cudaErrorAssert", "device-side assert triggered"),
    714: ("cudaErrorHardwareStackError", "hardware stack error"),
    715: ("cudaErrorIllegalInstruction", "an illegal instruction was encountered"),
    716: ("cudaErrorMisalignedAddress", "misaligned address"),
    717: ("cudaErrorInvalidAddressSpace", "operation not supported on global/shared address space"),
    718: ("cudaErrorInvalidPc", "invalid program counter"),
    719: ("cudaErrorLaunchFailure", "unspecified launch failure"),
    721: ("cudaErrorTensorMemoryLeak", "tensor memory not completely freed"),
    805: ("cudaErrorMpsConnectionFailed", "MPS client failed to connect to the MPS control daemon or the MPS server"),
    806: ("cudaErrorMpsRpcFailure", "the remote procedural call between the MPS server and the MPS client failed"),
    810: ("cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server"),
    911: ("cudaErrorExternalDevice", "an async error has occured in external entity outside of CUDA"),
    999: ("cudaErrorUnknown", "unknown error"),
}
"""The errors that lose the device: number, name and text, as `cudaGetErrorName` and `cudaGetErrorString` give them."""

_NUMBER = re.compile(r"\bcuda\s*(?:failure|error)\b[ :(]*([0-9]+)\b", re.IGNORECASE)
_NAMES = {name.lower() for name, _ in FATAL.values()}
_TEXTS = [text.lower() for _, text in FATAL.values()]
_CORE = re.compile(r"\b(?:CUDA|CUBLAS|CUDNN|CUDNN_FE|CURAND|CUFFT|CUSPARSE) failure [0-9]+: [^;]+")


def failure(message: str, during: str, remedy: str, *, code: int | None = None) -> RunError | DeviceLost:
    """Return the error for a call that failed on a GPU.

    Args:
        message: What the library said.
        during: What failed, as the beginning of a sentence: ``"ONNX Runtime cannot run the model on 3 images"``.
        remedy: What to do if the batch alone has failed.
        code: The `cudaError_t` that CUDA itself returned; without one, it is looked for in the message.
    """
    core = complaint(message)
    if code in FATAL if code is not None else _tells_of_fatal(message):
        return DeviceLost(
            f"{during} ({core}), and CUDA has lost the device for this process; start another process, and look at "
            "nvidia-smi and the kernel's log (Xid) if it happens again"
        )
    return RunError(f"{during} ({core}); {remedy}")


def complaint(error: object) -> str:
    """Return what an error of a library says, on one line, without its sources and the name of the machine."""
    line = " ".join(str(error).split())
    core = _CORE.search(line)
    return core[0].strip() if core else line[:300]


def _tells_of_fatal(message: str) -> bool:
    """Return whether a message of ONNX Runtime or TensorRT, which give no code, tells of a lost device."""
    lower = message.lower()
    numbers = {int(number) for number in _NUMBER.findall(message)}
    if numbers & FATAL.keys():
        return True
    if any(name in _NAMES for name in re.findall(r"cudaerror[a-z]+", lower)):
        return True
    # Texts count only where no number or name tells better, and only beside the word CUDA: some are everyday words.
    return not numbers and "cuda" in lower and any(text in lower for text in _TEXTS)
