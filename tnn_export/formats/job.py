"""What the formats write, made once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tnn_export.errors import ExportError
from tnn_export.lowering.graph import Served

__all__ = ["ExportJob", "first_line"]


@dataclass(frozen=True)
class ExportJob:
    """A model, and how it is to be written.

    Args:
        model: The model.
        batch: Smallest and largest batch size; ``None`` where there is no largest.
        opset: The version of ONNX's operators.
        calibration: Images for a quantisation to int8, uint8 ``[N, H, W, C]``; none where nothing is to be quantised.
        metadata: What the ONNX file says about itself.
    """

    model: Served
    batch: tuple[int, int | None] = (1, None)
    opset: int = 20
    calibration: NDArray[np.uint8] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The model as `torch.export` sees it.

        Raises:
            ExportError: If it cannot be exported.
        """
        low, high = self.batch
        # A batch dimension of one size is a constant.
        dimension = None if low == high else {0: torch.export.Dim("batch", min=low, max=high)}
        example = self.model.example()
        images = example[:1].expand(low if low == high else max(2, low), -1, -1, -1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.export.export(self.model, (images,), dynamic_shapes=(dimension,))
        except Exception as error:  # torch.export has no common base of its errors
            raise ExportError(
                f"torch.export cannot follow the model ({first_line(error)}); expected a backbone whose control flow "
                "does not hang on data: rewrite it with torch.where or torch.cond, or export with --formats torchscript"
            ) from error


def first_line(error: BaseException) -> str:
    """Return what an exporter complains about at the bottom of it, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
