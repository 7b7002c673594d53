"""The TorchScript artifact."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from tnn_export.serving import ServingModel

__all__ = ["export_torchscript"]


def export_torchscript(model: ServingModel, path: Path) -> None:
    """Write ``model`` as frozen TorchScript that loads with ``torch.jit.load`` and without this project."""
    with warnings.catch_warnings():
        # Torch announces the end of TorchScript at every module it compiles; services that run libtorch still need it.
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.freeze(torch.jit.script(model)).save(str(path))
