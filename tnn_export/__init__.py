"""Export of trained models to bundles that are proven equal to eager PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import attach

if TYPE_CHECKING:
    from tnn_export.bundle.ensemble import export_ensemble as export_ensemble
    from tnn_export.bundle.options import ExportOptions as ExportOptions
    from tnn_export.bundle.write import export_bundle as export_bundle
    from tnn_export.errors import ExportError as ExportError
    from tnn_export.lowering import lower_head as lower_head
    from tnn_export.lowering import lower_model as lower_model
    from tnn_export.proof.check import check_bundle as check_bundle
    from tnn_export.proof.parity import check_parity as check_parity
    from tnn_export.proof.reference import Reference as Reference
    from tnn_export.proof.report import ParityError as ParityError
    from tnn_export.proof.report import ParityReport as ParityReport
    from tnn_export.proof.report import StageParity as StageParity
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "bundle.ensemble": ["export_ensemble"],
            "bundle.options": ["ExportOptions"],
            "bundle.write": ["export_bundle"],
            "errors": ["ExportError"],
            "lowering": ["lower_head", "lower_model"],
            "proof.check": ["check_bundle"],
            "proof.parity": ["check_parity"],
            "proof.reference": ["Reference"],
            "proof.report": ["ParityError", "ParityReport", "StageParity"],
        },
    )
