"""The devices that a user can name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tnn_runtime.errors import UsageError

__all__ = ["DEVICES", "Device", "parse_device"]

DEVICES = "auto, cpu, compiled, cuda, cuda:N, tensorrt or tensorrt:N"
_PATTERN = re.compile(r"(auto|cpu|compiled)|(cuda|tensorrt)(?::([0-9]{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Args:
        kind: ``"auto"``, ``"cpu"``, ``"compiled"`` (a C program, on the CPU), ``"cuda"`` or ``"tensorrt"``.
        index: Which GPU, as CUDA counts those that ``CUDA_VISIBLE_DEVICES`` leaves; 0 where there is nothing to count.
    """

    kind: str
    index: int = 0

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU, for ONNX Runtime or for a compiled program; ``"auto"`` is none yet."""
        return self.kind in ("cpu", "compiled")

    def __str__(self) -> str:
        return self.kind if self.is_cpu or self.kind == "auto" else f"{self.kind}:{self.index}"


def parse_device(name: object) -> Device:
    """Return the device of this name; ``"cuda"`` and ``"tensorrt"`` are those of the first GPU.

    Raises:
        UsageError: If there is no such device.
    """
    match = _PATTERN.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise UsageError(f"unknown device {name!r}; choose {DEVICES}")
    counted, index = match[2], match[3]
    return Device(counted, int(index or 0)) if counted else Device(match[1])
