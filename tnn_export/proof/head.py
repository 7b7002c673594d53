"""The first stage of a proof: the lowered head against the eager one, on embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from tnn_export.lowering import lower_head
from tnn_export.proof.parity import compare
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import StageParity
from tnn_export.proof.running import Ran, Runner
from tnn_export.proof.samples import make_embeddings
from tnn_train.heads import Head

__all__ = ["compare_heads"]

_REAL_EMBEDDINGS = 64


def compare_heads(head: Head, reference: Reference) -> StageParity:
    """Compare the lowered head with the eager one."""
    samples = make_embeddings(head, reference.embeddings[:_REAL_EMBEDDINGS])
    lowered = lower_head(head, parts=reference.has_parts and bool(head.evidence_meanings))
    return compare(
        Reference(head, samples, torch.from_numpy(samples.images), parts=reference.has_parts),
        _of_head(lowered),
        "fp32",
        (len(samples),),
    )


def _of_head(lowered: nn.Module) -> Runner:
    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        outputs = []
        for batch in batches:
            with torch.inference_mode():
                found = lowered(torch.from_numpy(batch))
            values = {"logits": found} if isinstance(found, torch.Tensor) else found
            outputs.append({"embedding": batch, **{name: value.numpy() for name, value in values.items()}})
        return Ran(outputs, f"torch {torch.__version__}")

    return run
