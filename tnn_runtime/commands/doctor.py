"""What works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tnn_runtime.backends import parse_device, probe_device
from tnn_runtime.errors import TnnError
from tnn_runtime.installation import DISTRIBUTION, install_command
from tnn_runtime.queue.cores import usable_cores

__all__ = ["Finding", "examine"]

_PACKAGES = {
    "numpy": "",
    "pillow": "",
    "torch": "train",
    "torchvision": "train",
    "onnx": "export",
    "cuda-bindings": "gpu",
    "tritonclient": "serve",
}
"""Packages, and the extras that need them."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Args:
        name: What was looked at.
        works: Whether it is there and works.
        detail: Its version, or what is missing and the remedy.
    """

    name: str
    works: bool
    detail: str


def examine() -> list[Finding]:
    """Look at Python, the packages, the GPU, and which devices really run a model.

    Where TensorRT works, a tiny engine is built, which takes seconds.
    """
    return [
        Finding(DISTRIBUTION, True, version(DISTRIBUTION)),
        Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("cores", True, f"{usable_cores()} usable"),
        *(_package(name, extra) for name, extra in _PACKAGES.items()),
        _onnxruntime(),
        _gpu(),
        *(_device(device) for device in ("cpu", "compiled", "cuda:0", "tensorrt:0")),
    ]


def _onnxruntime() -> Finding:
    """Find the build of ONNX Runtime; the two builds share one import name and overwrite each other."""
    installed = [finding for finding in map(_package, ("onnxruntime", "onnxruntime-gpu")) if finding.works]
    builds = ", ".join(f"{finding.name} {finding.detail}" for finding in installed)
    if len(installed) == 2:
        return Finding("onnxruntime", False, f"{builds} overwrite each other: pip uninstall both, then install one")
    return Finding("onnxruntime", bool(installed), builds or f"not installed ({install_command('cpu', 'gpu')})")


def _package(name: str, extra: str = "") -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        remedy = install_command(extra) if extra else f"pip install {name}"
        return Finding(name, False, f"not installed ({remedy})")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", False, "nvidia-smi not found: no NVIDIA driver on this machine")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    text = "; ".join((result.stdout if result.returncode == 0 else result.stderr or result.stdout).split("\n")).strip(
        "; "
    )
    return Finding("gpu", result.returncode == 0, text)


def _device(name: str) -> Finding:
    try:
        return Finding(f"device {name}", True, probe_device(parse_device(name)))
    except TnnError as error:
        return Finding(f"device {name}", False, str(error))
