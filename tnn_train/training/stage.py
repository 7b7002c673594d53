"""What is trained, and on what: the whole model on images, or the head alone on embeddings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tnn_train.data import ImageData
from tnn_train.data.augment import AugmentedSet
from tnn_train.data.loader import Items
from tnn_train.heads import Head
from tnn_train.model.image_model import ImageModel, LearningModel, Normalize
from tnn_train.training.embeddings import cache_folder, embed
from tnn_train.training.recipe import TrainConfig

__all__ = ["Answering", "Stage", "set_stage"]


@dataclass(frozen=True)
class Stage:
    """The trained part of a model, and the data sets as that part sees them.

    Args:
        model: The whole model.
        learner: What is trained: the model, or its head.
        prepare: From a batch of the data sets, on the device, to inputs of the learner.
        train: Training items, by ``(epoch, index)``.
        val: Validation items.
        test: Test items.
        views: How many views of each image a training item has, if not one alone.
    """

    model: ImageModel
    learner: nn.Module
    prepare: nn.Module
    train: Items
    val: Items
    test: Items
    views: int = 1

    def embed(self, inputs: Tensor) -> Tensor:
        """Return what the head takes of inputs of the learner, ``[N, D]`` or ``[N, D, h, w]``."""
        embeddings: Tensor = self.model.backbone(inputs) if self.learner is self.model else inputs
        return embeddings

    def whole(self, learner: nn.Module) -> ImageModel:
        """Return the whole model with ``learner``, the learner or a copy of it, in its place."""
        if isinstance(learner, Head):
            return ImageModel(self.model.backbone, learner)
        assert isinstance(learner, ImageModel)
        return learner

    def snapshot(self, learner: nn.Module) -> ImageModel:
        """Return a model that further training does not change."""
        return self.whole(copy.deepcopy(learner))

    def with_head(self, head: Head) -> Stage:
        """Return the stage with another head in the model."""
        model = ImageModel(self.model.backbone, head)
        return replace(self, model=model, learner=model if self.learner is self.model else head)


class Answering(nn.Module):
    """The forward pass of a training step: inputs of a learner to logits, and to what the head made them of.

    Args:
        learner: A model, or its head.
    """

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, C]``, and embeddings ``[N, D]`` or maps ``[N, D, h, w]``."""
        if isinstance(self.learner, ImageModel):
            return self.learner.answer(inputs)
        return self.learner(inputs), inputs


def set_stage(model: ImageModel, data: ImageData, config: TrainConfig, device: torch.device) -> Stage:
    """Bring the model to the device and the data into the form that is trained on."""
    if model.images is not None:
        model = LearningModel(model)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if not config.freeze_backbone:
        views = model.head.views(model.head.options)
        images = AugmentedSet(data.train, config.augmentations, config.seed, views)
        return Stage(model, model, Normalize(data.preprocessing).to(device), images, data.val, data.test, views)
    model.backbone.requires_grad_(False)
    cache = cache_folder(config.embedding_cache)
    train, val, test = (
        embed(model.backbone, images, device, cache, config.workers) for images in (data.train, data.val, data.test)
    )
    return Stage(model, model.head, nn.Identity(), train, val, test)
