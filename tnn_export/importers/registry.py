"""The layers that can be imported, by name."""

from __future__ import annotations

from tnn_export.importers.source import Source
from tnn_export.importers.tversky import TVERSKY
from tnn_export.importers.tversky_nn import TVERSKY_NN
from tnn_export.importers.verskyt import VERSKYT

__all__ = ["IMPORTERS"]

IMPORTERS: dict[str, Source] = {"tversky-nn": TVERSKY_NN, "verskyt": VERSKYT, "tversky": TVERSKY}
