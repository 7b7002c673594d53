"""The formats of an artifact: one file each, that writes a model and says what it can.

A new format is a file with a function that writes it, an entry in `FORMATS`, and a function that runs it in
`tnn_export.proof.artifact`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tnn_export.errors import ExportError
from tnn_export.formats.job import ExportJob
from tnn_export.formats.onnx import export_onnx
from tnn_export.formats.pt2 import export_pt2
from tnn_export.formats.tensorrt import export_tensorrt
from tnn_export.formats.torchscript import export_torchscript
from tnn_runtime.bundle.manifest import ONNX_FILE, PT2_FILE, TORCHSCRIPT_FILE
from tnn_train.fields import choose

__all__ = ["FORMATS", "ExportJob", "Format", "check_formats"]


@dataclass(frozen=True)
class Format:
    """A kind of artifact.

    Args:
        file: Its name in the bundle, as a pattern.
        write: Writes it into a folder and returns its path.
        refused: The precisions that it cannot have, each with the reason.
        needs: The format that it is made from, which is written first.
        needs_gpu: Whether it runs on a GPU only.
        remarks: What who chooses a precision should know.
    """

    file: str
    write: Callable[[ExportJob, Path], Path]
    refused: dict[str, str]
    needs: str | None = None
    needs_gpu: bool = False
    remarks: dict[str, str] = field(default_factory=dict)


_NO_BF16 = {"bf16": "ONNX Runtime has no bfloat16 convolution on the CPU, where the proof runs; choose fp16"}
_NO_INT8 = {"int8": "quantised operators are written for ONNX only; choose the format onnx"}
_SLOW = {
    "fp16": "fp16 is for GPUs here: on a CPU without AVX512-FP16 it takes ten to thirty times as long as fp32",
    "bf16": "bf16 is for GPUs here: on a CPU without AVX512-BF16 it takes three to twenty times as long as fp32",
}

FORMATS = {
    "onnx": Format(ONNX_FILE, export_onnx, _NO_BF16),
    "torchscript": Format(TORCHSCRIPT_FILE, export_torchscript, _NO_INT8, remarks=_SLOW),
    "pt2": Format(PT2_FILE, export_pt2, _NO_INT8, remarks=_SLOW),
    "tensorrt": Format("*.engine", export_tensorrt, _NO_BF16, needs="onnx", needs_gpu=True),
}


def check_formats(names: Sequence[str], precision: str) -> list[str]:
    """Return the formats without repetitions, each after the one that it is made from.

    Raises:
        UsageError: If one is unknown.
        ExportError: If there is none, or one cannot have the precision.
    """
    if not names:
        raise ExportError(f"no format was given; choose from {', '.join(FORMATS)}")
    for name in names:
        choose("format", name, FORMATS)
        if precision in FORMATS[name].refused:
            raise ExportError(f"{name} cannot be exported in {precision}: {FORMATS[name].refused[precision]}")
    needed = [(FORMATS[name].needs, name) for name in names]
    return list(dict.fromkeys(name for pair in needed for name in pair if name is not None))
