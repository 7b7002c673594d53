from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from tnn_runtime import ProviderUnavailable
from tnn_runtime.backends import cuda, libraries
from tnn_runtime.backends.cuda import Cuda
from tnn_runtime.backends.libraries import driver_problems
from tnn_runtime.backends.providers import CUDA, cuda_problems
from tnn_runtime.backends.tensorrt import tensorrt_problems

KERNEL = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12.2.0\n"
)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Installs a driver that supports a version of CUDA, as CUDA writes it, or does not tell."""

    def install(version: int | None, kernel: str = KERNEL) -> None:
        def tell(pointer: Any) -> int:
            pointer._obj.value = version
            return 0

        library = SimpleNamespace() if version is None else SimpleNamespace(cuDriverGetVersion=tell)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        if kernel:
            (tmp_path / "version").write_text(kernel)
        monkeypatch.setattr(libraries, "_DRIVER_FILE", tmp_path / "version")

    return install


@pytest.mark.parametrize(
    ("version", "shown", "needed", "remedy"),
    [
        (11040, "11.4", 13, "driver 580.65 or newer"),
        (12080, "12.8", 13, "driver 580.65 or newer"),
        (12090, "12.9", 13, "driver 580.65 or newer"),
        (11080, "11.8", 12, "driver 525.60 or newer"),
        (13010, "13.1", 14, "a driver for CUDA 14"),
    ],
)
def test_a_driver_that_is_too_old_is_told_with_what_it_supports(
    driver: Callable[..., None], version: int, shown: str, needed: int, remedy: str
) -> None:
    driver(version)
    assert driver_problems(needed) == [
        f"the NVIDIA driver 550.54.14 supports CUDA {shown} at most, and CUDA {needed} is needed (install {remedy}; "
        "for a container, on its host)"
    ]


@pytest.mark.parametrize("version", [13000, 13010, 14020, 0, None])
def test_a_driver_that_is_new_enough_or_does_not_tell_is_tried(
    driver: Callable[..., None], version: int | None
) -> None:
    driver(version)
    assert driver_problems() == []


def test_where_the_kernel_does_not_tell_the_driver_has_no_number(driver: Callable[..., None]) -> None:
    driver(12080, kernel="")
    assert driver_problems()[0].startswith("the NVIDIA driver supports CUDA 12.8 at most, and CUDA 13 is needed")


@pytest.mark.parametrize("problems", [cuda_problems, tensorrt_problems])
def test_every_way_to_a_gpu_names_the_driver(
    driver: Callable[..., None], problems: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(12080)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    assert any("supports CUDA 12.8 at most, and CUDA 13 is needed" in problem for problem in problems())


def test_cuda_itself_says_why_no_gpu_works(driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from fake_cuda import FakeCuda

    fake = FakeCuda()
    fake.failing["cudaGetDeviceCount"] = 35
    monkeypatch.setattr(cuda, "cuda_runtime", lambda: fake)
    driver(12080)
    with pytest.raises(ProviderUnavailable, match=r"error 35: cudaErrorInsufficientDriver.*\); the NVIDIA driver 550"):
        Cuda(0)
    driver(13010)
    with pytest.raises(ProviderUnavailable, match="install a driver for CUDA 13 on a machine with an NVIDIA GPU"):
        Cuda(0)
