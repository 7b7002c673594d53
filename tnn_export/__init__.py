"""Export of trained models to bundles that are proven equal to eager PyTorch."""

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
