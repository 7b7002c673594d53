"""Training of Tversky ResNets and their linear baselines, from images to checkpoint folders.

The names below are loaded on first use, so that an exporter which needs a head or a checkpoint does not pull in the
training loop and the data sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_train.data import DataConfig, ImageData, load_data
    from tnn_train.evaluation.scoring import evaluate
    from tnn_train.heads import LinearHead, TverskyHead
    from tnn_train.heads.tversky.config import TverskyConfig
    from tnn_train.heads.tversky.layer import TverskySimilarity
    from tnn_train.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from tnn_train.model.config import ModelConfig
    from tnn_train.model.image_model import build_model
    from tnn_train.training.loop import train
    from tnn_train.training.recipe import TrainConfig

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
        "model.checkpoint": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
        "heads.tversky.config": ["TverskyConfig"],
        "model.config": ["ModelConfig"],
        "data": ["DataConfig", "ImageData", "load_data"],
        "heads": ["LinearHead", "TverskyHead"],
        "heads.tversky.layer": ["TverskySimilarity"],
        "training.loop": ["train"],
        "model.image_model": ["build_model"],
        "training.recipe": ["TrainConfig"],
        "evaluation.scoring": ["evaluate"],
    },
)
