"""What a bundle holds for the runtime beside the model: the head's tensors, and samples to replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tnn_export.formats import FORMATS
from tnn_export.formats.precision import PRECISIONS
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import ParityReport
from tnn_runtime.bundle.manifest import GOLDEN_FILE, HEAD_FILE
from tnn_train.heads import Head

__all__ = ["write_golden", "write_head"]

_GOLDEN_SAMPLES = 8
_GOLDEN_SLACK = 0.05


def write_head(head: Head, folder: Path) -> None:
    """Write what explanations need to ``head.npz``, for heads that have explanations."""
    with torch.no_grad():
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in head.arrays().items()}
    if arrays:
        np.savez(folder / HEAD_FILE, **arrays)  # type: ignore[arg-type]


def write_golden(reference: Reference, report: ParityReport, precision: str, folder: Path) -> tuple[float, ...]:
    """Write the samples to replay at load, those farthest from a membership boundary; return their tolerances."""
    artifacts = [stage for name, stage in report.stages.items() if name in FORMATS]
    worst = np.max([stage.relative for stage in artifacts], axis=0)
    allowed = PRECISIONS[precision].tolerance
    unbounded = worst + _GOLDEN_SLACK
    relative = unbounded if allowed is None else np.full(len(worst), allowed)
    order = np.lexsort((-reference.margins(), worst > relative))
    golden = order[:_GOLDEN_SAMPLES]
    np.savez_compressed(folder / GOLDEN_FILE, images=reference.samples.images[golden], logits=reference.logits[golden])
    return tuple(float(value) for value in relative[golden] * reference.scale[golden, 0])
