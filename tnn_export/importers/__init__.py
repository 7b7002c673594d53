"""Checkpoints trained with public Tversky layers, in the form of this project.

One file a layer: a `Source` that says which tensors and options it has, how they become ours, and its own formula, with
which every import is compared. Enter a new one in `IMPORTERS`.
"""

from __future__ import annotations

from tnn_export.importers.load import import_state_dict
from tnn_export.importers.registry import IMPORTERS

__all__ = ["IMPORTERS", "import_state_dict"]
