"""Training of Tversky ResNets and their linear baselines, from images to checkpoint folders.

The names below are loaded on first use, so that an exporter which needs a head or a checkpoint does not pull in the
training loop and the data sets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tnn_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from tnn_train.config import ModelConfig, TrainConfig, TverskyConfig
    from tnn_train.data import ImageData, load_data
    from tnn_train.heads import LinearHead, TverskyHead
    from tnn_train.loop import evaluate, train
    from tnn_train.models import build_model

__all__ = [
    "Checkpoint",
    "ImageData",
    "LinearHead",
    "ModelConfig",
    "TrainConfig",
    "TverskyConfig",
    "TverskyHead",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "load_data",
    "save_checkpoint",
    "train",
]

_MODULES = {
    "tnn_train.checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "tnn_train.config": ("ModelConfig", "TrainConfig", "TverskyConfig"),
    "tnn_train.data": ("ImageData", "load_data"),
    "tnn_train.heads": ("LinearHead", "TverskyHead"),
    "tnn_train.loop": ("evaluate", "train"),
    "tnn_train.models": ("build_model",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
