"""What can be imported, by name."""

from __future__ import annotations

from collections.abc import Callable

from tnn_export.importers.linear import LINEAR, import_linear
from tnn_export.importers.prosemble import PROSEMBLE, import_prosemble
from tnn_export.importers.source import Source
from tnn_export.importers.tversky import TVERSKY
from tnn_export.importers.tversky_nn import TVERSKY_NN
from tnn_export.importers.verskyt import VERSKYT
from tnn_train.model.checkpoint import Checkpoint

__all__ = ["IMPORTERS", "SOURCES", "WHOLE"]

IMPORTERS: dict[str, Source] = {"tversky-nn": TVERSKY_NN, "verskyt": VERSKYT, "tversky": TVERSKY}
"""The Tversky layers."""

WHOLE: dict[str, Callable[..., Checkpoint]] = {LINEAR: import_linear, PROSEMBLE: import_prosemble}
"""What else there is: for each name what makes a checkpoint of a file, with the arguments of `import_state_dict`."""

SOURCES = (*IMPORTERS, *WHOLE)
