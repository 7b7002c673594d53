"""The precisions of an export: what is computed in what, and how far from eager float32 it may come."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["HEAD_TOLERANCE", "PRECISIONS", "Precision"]

HEAD_TOLERANCE = 1e-4
"""Largest relative difference of an output from what the eager head makes of the artifact's own embedding."""


@dataclass(frozen=True)
class Precision:
    """How a backbone is computed; the head and its memberships stay in float32 in all of them.

    Args:
        dtype: The type of the backbone's weights and activations; int8 is made of float32 by a quantisation.
        tolerance: Largest difference of an output, relative to the largest magnitude among the sample's values of that
            output, and at least to 1; ``None`` where only the agreement counts.
        embedding_tolerance: Largest distance of an embedding, relative to its length; where only the agreement counts,
            of a real image.
        agreement: Smallest share of images like the real ones with the same best class; 0 where every sample is
            bounded closely.
        accuracy_drop: Largest loss of accuracy on images like the real ones; 1 in the same case.
    """

    dtype: torch.dtype
    tolerance: float | None
    embedding_tolerance: float
    agreement: float
    accuracy_drop: float


PRECISIONS = {
    "fp32": Precision(torch.float32, 1e-4, 1e-4, 0.0, 1.0),
    "fp16": Precision(torch.float16, 2e-2, 1e-2, 0.99, 0.005),
    "bf16": Precision(torch.bfloat16, 1e-1, 5e-2, 0.98, 0.01),
    "int8": Precision(torch.float32, None, 0.5, 0.97, 0.01),
}
