"""The TensorRT artifact: an engine of the ONNX file beside it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tnn_export.errors import ExportError
from tnn_export.formats.job import ExportJob
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.engines import build_engine

__all__ = ["export_tensorrt"]

_TYPICAL_BATCH = 8


def export_tensorrt(job: ExportJob, folder: Path) -> Path:
    """Build an engine, named after the hardware and the version it is for, with its record beside it.

    Raises:
        ExportError: If there is no largest batch.
        EngineError: If TensorRT refuses the model.
        ProviderUnavailable: If there is no TensorRT here that builds engines, or no GPU where it needs one.
    """
    low, high = job.batch
    if high is None:
        raise ExportError("TensorRT needs a largest batch; give one with --max-batch 64 (batch=BatchBounds(1, 64))")
    with tempfile.TemporaryDirectory(dir=folder.parent) as workshop:
        engine = build_engine(
            folder / ONNX_FILE,
            workshop,
            input_name="images",
            shape=job.model.input_shape,
            batch=(low, min(max(low, _TYPICAL_BATCH), high), high),
        )
        shutil.move(engine.with_suffix(".json"), folder)
        return Path(shutil.move(engine, folder))
