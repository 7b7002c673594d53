"""Classifiers trained with public Tversky layers, with a linear one, or with prosemble, as checkpoints of this project.

One file a Tversky layer: a `Source` that says which tensors and options it has, how they become ours, and its own
formula, with which every import is compared. Enter a new one in `IMPORTERS`.
"""

from __future__ import annotations

from tnn_export.importers.linear import LINEAR
from tnn_export.importers.load import import_state_dict
from tnn_export.importers.prosemble import PROSEMBLE
from tnn_export.importers.registry import IMPORTERS, SOURCES

__all__ = ["IMPORTERS", "LINEAR", "PROSEMBLE", "SOURCES", "import_state_dict"]
