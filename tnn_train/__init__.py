"""Training of Tversky ResNets and their linear baselines, from images to checkpoint folders.

The names below are loaded on first use, so that an exporter which needs a head or a checkpoint does not pull in the
training loop and the data sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import attach

if TYPE_CHECKING:
    from tnn_train.data import DataConfig as DataConfig
    from tnn_train.data import ImageData as ImageData
    from tnn_train.data import load_data as load_data
    from tnn_train.evaluation.scoring import evaluate as evaluate
    from tnn_train.heads import LinearHead as LinearHead
    from tnn_train.heads import MatchingHead as MatchingHead
    from tnn_train.heads import TverskyHead as TverskyHead
    from tnn_train.heads.matching.config import MatchingConfig as MatchingConfig
    from tnn_train.heads.tversky.config import TverskyConfig as TverskyConfig
    from tnn_train.heads.tversky.layer import TverskySimilarity as TverskySimilarity
    from tnn_train.model.checkpoint import Checkpoint as Checkpoint
    from tnn_train.model.checkpoint import load_checkpoint as load_checkpoint
    from tnn_train.model.checkpoint import save_checkpoint as save_checkpoint
    from tnn_train.model.config import ModelConfig as ModelConfig
    from tnn_train.model.image_model import build_model as build_model
    from tnn_train.training.loop import train as train
    from tnn_train.training.recipe import TrainConfig as TrainConfig
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "data": ["DataConfig", "ImageData", "load_data"],
            "evaluation.scoring": ["evaluate"],
            "heads": ["LinearHead", "MatchingHead", "TverskyHead"],
            "heads.matching.config": ["MatchingConfig"],
            "heads.tversky.config": ["TverskyConfig"],
            "heads.tversky.layer": ["TverskySimilarity"],
            "model.checkpoint": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
            "model.config": ["ModelConfig"],
            "model.image_model": ["build_model"],
            "training.loop": ["train"],
            "training.recipe": ["TrainConfig"],
        },
    )
