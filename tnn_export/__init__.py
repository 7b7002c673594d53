"""Export of trained models to bundles that are proven equal to eager PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_export.bundle import export_bundle
    from tnn_export.errors import ExportError, ParityError
    from tnn_export.lowering import lower_head, lower_model
    from tnn_export.parity import FormatParity, ParityReport, Reference, check_parity

__all__ = [
    "ExportError",
    "FormatParity",
    "ParityError",
    "ParityReport",
    "Reference",
    "check_parity",
    "export_bundle",
    "lower_head",
    "lower_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "bundle": ["export_bundle"],
        "errors": ["ExportError", "ParityError"],
        "lowering": ["lower_head", "lower_model"],
        "parity": ["FormatParity", "ParityReport", "Reference", "check_parity"],
    },
)
