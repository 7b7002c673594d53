"""The TorchScript artifact."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from tnn_export.errors import ExportError
from tnn_export.formats.job import ExportJob, first_line
from tnn_runtime.bundle.manifest import TORCHSCRIPT_FILE

__all__ = ["export_torchscript"]


def export_torchscript(job: ExportJob, folder: Path) -> Path:
    """Write frozen TorchScript that loads with ``torch.jit.load`` and without this project.

    Raises:
        ExportError: If the model cannot be scripted.
    """
    with warnings.catch_warnings():
        # Torch announces the end of TorchScript at every module it compiles; services that run libtorch still need it.
        warnings.simplefilter("ignore")
        try:
            scripted = torch.jit.freeze(torch.jit.script(job.model))
        except Exception as error:  # torch.jit raises many unrelated classes
            raise ExportError(
                f"TorchScript cannot compile the model ({first_line(error)}); expected a backbone that "
                "torch.jit.script takes: change it, or leave out the format torchscript"
            ) from error
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    # As bytes: on a full disk torch, which would write itself, raises an error that says little.
    path = folder / TORCHSCRIPT_FILE
    path.write_bytes(buffer.getbuffer())
    return path
