from __future__ import annotations

import pytest

from tnn_runtime import DeviceLost, RunError
from tnn_runtime.backends.failures import FATAL, complaint, failure

ORT = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'conv1' "
    "Status Message: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, "
    "common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) {}; GPU=0 ; hostname=serving-7 ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/nn/conv.cc ; line=388 ; expr=cudaStreamSynchronize(stream);"
)


@pytest.mark.parametrize(
    "message",
    [
        ORT.format("CUDA failure 700: an illegal memory access was encountered "),
        ORT.format("CUDA failure 719: unspecified launch failure "),
        ORT.format("CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable "),
        ORT.format("CUDA failure 214: uncorrectable ECC error encountered "),
        ORT.format("CUDA failure 999: unknown error "),
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)",
        "Error Code 1: Cuda Runtime (In catchCudaError at checkMacros.cpp:250 (cudaError 700: an illegal access))",
        "Error Code 1: Cask (Cask convolution execution); cudaErrorLaunchFailure",
        "Cuda Runtime (unspecified launch failure)",
    ],
)
def test_these_lose_the_device(message: str) -> None:
    error = failure(message, "it cannot run", "try again")
    assert isinstance(error, DeviceLost)
    assert "CUDA has lost the device for this process; start another process" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        ORT.format("CUDA failure 2: out of memory "),
        ORT.format("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR "),
        ORT.format("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED "),
        "Failed to allocate memory for requested buffer of size 700",
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: images index: 1 Got: 700",
        "unknown error",
        "CUDA out of memory. Tried to allocate 719 bytes",
    ],
)
def test_these_fail_their_batch_alone(message: str) -> None:
    error = failure(message, "it cannot run", "try again")
    assert isinstance(error, RunError)
    assert str(error).endswith("; try again")


@pytest.mark.parametrize("message", ["", "CUDA failure 700: an illegal memory access", "CUDA failure 2: out of memory"])
def test_the_code_of_cuda_decides_whatever_the_message_says(message: str) -> None:
    for code in range(1, 1000):
        kind = DeviceLost if code in FATAL else RunError
        assert type(failure(message, "it cannot run", "try again", code=code)) is kind


def test_messages_tell_neither_sources_nor_the_name_of_the_machine() -> None:
    message = ORT.format("CUDA failure 2: out of memory ")
    assert complaint(message) == "CUDA failure 2: out of memory"
    assert complaint("a\n b  c" * 200)[:5] == "a b c"
    assert len(complaint("x" * 999)) == 300


def test_the_table_has_the_names_and_texts_of_cuda() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for number, (name, text) in FATAL.items():
        code = runtime.cudaError_t(number)
        assert (code.name, runtime.cudaGetErrorString(code)[1].decode()) == (name, text)
