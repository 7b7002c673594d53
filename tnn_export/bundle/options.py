"""How a checkpoint is to be exported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tnn_export.errors import ExportError
from tnn_export.formats import check_formats
from tnn_export.formats.opsets import OPSETS
from tnn_export.formats.precision import PRECISIONS
from tnn_runtime.answers.reject import ALL_SCORES
from tnn_runtime.bundle.manifest import MOST_IMAGES, BatchBounds
from tnn_train.fields import choose

__all__ = ["PROOF_BYTES", "PROOF_IMAGES", "ExportOptions"]

PROOF_BYTES = 64 << 20
PROOF_IMAGES = 1024
_HOTTEST = 1e30


@dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint is exported.

    Args:
        formats: Keys of `tnn_export.formats.FORMATS`.
        precision: What the backbone computes in, a key of `tnn_export.formats.precision.PRECISIONS`.
        outputs: What artifacts return beside logits and embedding, of `tnn_export.lowering.graph.extra_outputs`.
        batch: The batch sizes that they take.
        opset: The version of ONNX's operators.
        reject_score: What tells how sure the model is of an image, a name of `tnn_runtime.answers.reject.ALL_SCORES`;
            ``None`` for what suits the head.
        coverage: The share of images like those of the proof that reaches the threshold of this score.
        proof_images: How many images the proof is made on, and the bundle keeps for it, at most; ``None`` for as many
            as take `PROOF_BYTES`, and no more than `PROOF_IMAGES`.
        temperature: What the runtime divides logits by for scores; ``None`` for what fits the real images of the proof
            best.
        exemplars: Whether the bundle shall have the exemplars of the checkpoint, which are training images.

    Raises:
        UsageError: If something is unknown or out of its range.
        ExportError: If a format cannot have the precision.
    """

    formats: tuple[str, ...] = ("onnx", "torchscript")
    precision: str = "fp32"
    outputs: tuple[str, ...] = ()
    batch: BatchBounds = dataclasses.field(default_factory=BatchBounds)
    opset: int = 20
    reject_score: str | None = None
    coverage: float = 0.99
    proof_images: int | None = None
    temperature: float | None = None
    exemplars: bool = True

    def __post_init__(self) -> None:
        choose("precision", self.precision, PRECISIONS)
        object.__setattr__(self, "formats", tuple(check_formats(self.formats, self.precision)))
        choose("opset", self.opset, OPSETS)
        if self.reject_score is not None:
            choose("reject score", self.reject_score, ALL_SCORES)
        if not 0 < self.coverage < 1:
            raise ExportError(f"got a coverage of {self.coverage:g}; expected a share between 0 and 1, such as 0.99")
        if self.proof_images is not None and self.proof_images < 1:
            raise ExportError(f"got {self.proof_images} images for the proof; expected at least 1")
        if self.temperature is not None and not 0 < self.temperature <= _HOTTEST:
            raise ExportError(f"got the temperature {self.temperature:g}; expected a number above 0, 1 for none")
        low, high = self.batch.smallest, self.batch.largest
        if not 1 <= low <= min(MOST_IMAGES, low if high is None else high):
            raise ExportError(
                f"got batches from {low} to {high} images; expected at least 1 to {MOST_IMAGES}, and no less at the end"
            )

    def most_images(self, size: int) -> int:
        """Return how many images the proof is made on at most, if each takes ``size`` bytes of the bundle."""
        return self.proof_images or max(1, min(PROOF_IMAGES, PROOF_BYTES // size))
