"""Training of Tversky ResNets and their linear baselines, from images to checkpoint folders.

The names below are loaded on first use, so that an exporter which needs a head or a checkpoint does not pull in the
training loop and the data sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from tnn_train.config import ModelConfig, TrainConfig, TverskyConfig
    from tnn_train.data import DataConfig, ImageData, load_data
    from tnn_train.heads import LinearHead, TverskyHead
    from tnn_train.layers import TverskySimilarity
    from tnn_train.loop import evaluate, train
    from tnn_train.models import build_model

__all__ = [
    "Checkpoint",
    "DataConfig",
    "ImageData",
    "LinearHead",
    "ModelConfig",
    "TrainConfig",
    "TverskyConfig",
    "TverskyHead",
    "TverskySimilarity",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "load_data",
    "save_checkpoint",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "checkpoint": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
        "config": ["ModelConfig", "TrainConfig", "TverskyConfig"],
        "data": ["DataConfig", "ImageData", "load_data"],
        "heads": ["LinearHead", "TverskyHead"],
        "layers": ["TverskySimilarity"],
        "loop": ["evaluate", "train"],
        "models": ["build_model"],
    },
)
