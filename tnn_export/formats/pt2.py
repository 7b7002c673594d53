"""The artifact of ``torch.export``."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch

from tnn_export.formats.job import ExportJob
from tnn_runtime.bundle.manifest import PT2_FILE

__all__ = ["export_pt2"]


def export_pt2(job: ExportJob, folder: Path) -> Path:
    """Write a ``.pt2`` archive that loads with ``torch.export.load`` and without this project; no pickle is in it.

    Raises:
        ExportError: If the model cannot be exported.
    """
    program = copy.copy(job.program)
    # Example inputs would be pickled.
    program.example_inputs = None
    for node in program.graph.nodes:
        for name in _WHERE_IT_WAS_MADE:
            node.meta.pop(name, None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path = folder / PT2_FILE
    path.write_bytes(buffer.getbuffer())
    return path


_WHERE_IT_WAS_MADE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
