"""Export of trained models to bundles that are proven equal to eager PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_export.bundle.options import ExportOptions
    from tnn_export.bundle.write import export_bundle
    from tnn_export.errors import ExportError
    from tnn_export.lowering import lower_head, lower_model
    from tnn_export.proof.check import check_bundle
    from tnn_export.proof.parity import check_parity
    from tnn_export.proof.reference import Reference
    from tnn_export.proof.report import ParityError, ParityReport, StageParity

__all__ = [
    "ExportError",
    "ExportOptions",
    "ParityError",
    "ParityReport",
    "Reference",
    "StageParity",
    "check_bundle",
    "check_parity",
    "export_bundle",
    "lower_head",
    "lower_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "bundle.write": ["export_bundle"],
        "proof.check": ["check_bundle"],
        "errors": ["ExportError"],
        "lowering": ["lower_head", "lower_model"],
        "bundle.options": ["ExportOptions"],
        "proof.parity": ["check_parity"],
        "proof.reference": ["Reference"],
        "proof.report": ["ParityError", "ParityReport", "StageParity"],
    },
)
