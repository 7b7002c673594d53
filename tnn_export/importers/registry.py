"""What can be imported, by name."""

from __future__ import annotations

from tnn_export.importers.linear import LINEAR
from tnn_export.importers.source import Source
from tnn_export.importers.tversky import TVERSKY
from tnn_export.importers.tversky_nn import TVERSKY_NN
from tnn_export.importers.verskyt import VERSKYT

__all__ = ["IMPORTERS", "SOURCES"]

IMPORTERS: dict[str, Source] = {"tversky-nn": TVERSKY_NN, "verskyt": VERSKYT, "tversky": TVERSKY}
"""The Tversky layers."""

SOURCES = (*IMPORTERS, LINEAR)
