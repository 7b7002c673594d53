"""The proof of an import: the model against the formula of what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.errors import ExportError
from tnn_export.proof.parity import compare
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import StageParity
from tnn_export.proof.running import Ran
from tnn_export.proof.samples import Samples
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = ["prove_import"]

_BATCH = 16


def prove_import(
    model: ImageModel,
    preprocessing: Preprocessing,
    samples: Samples,
    logits: Callable[[Tensor], Tensor],
    layer: str,
    left_out: str,
) -> StageParity:
    """Compare a model with the formula of the layer that its head was made of.

    Args:
        model: The model.
        preprocessing: Its normalisation.
        samples: What to compare them on.
        logits: The formula: embeddings ``[N, D]`` to logits ``[N, C]``, float64.
        layer: What the layer is called, for errors.
        left_out: What of its own formula the head leaves out, and where it shows, for errors.

    Raises:
        ExportError: If they differ.
    """
    normalize = Normalize(preprocessing)

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        outputs = []
        for images in batches:
            with torch.inference_mode():
                x = model.backbone(normalize(torch.from_numpy(images)))
                outputs.append({"embedding": x.numpy(), "logits": logits(x).float().numpy()})
        return Ran(outputs)

    reference = Reference.of(model, preprocessing, samples)
    parity = compare(reference, run, "fp32", (_BATCH,))
    if not parity.passed:
        raise ExportError(
            f"on {parity.failed} of {len(samples)} samples the head differs from {layer} (relative "
            f"difference {parity.max_rel_diff:.1e}, allowed {parity.tolerance:.0e}): {left_out}; check that the "
            "images, --mean and --std are those of the training"
        )
    return parity
