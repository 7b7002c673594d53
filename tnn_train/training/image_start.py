"""What learned images start as: training images, or noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tnn_train.data import ImageData, ImageSet
from tnn_train.data.augment import derived_seed
from tnn_train.heads.base import NOISE
from tnn_train.model.image_model import ImageModel

__all__ = ["start_images"]

_NOISE = 0.1


def start_images(model: ImageModel, data: ImageData, seed: int) -> None:
    """Let the learned images of a model, if it has any, start as its head wants them.

    Args:
        model: The model.
        data: The images that it is trained on.
        seed: Of the training.
    """
    if model.images is None:
        return
    counts, preprocessing = model.images.counts, data.preprocessing
    if model.head.start_images == NOISE:
        pixels = _noise(preprocessing.shape, counts, seed)
    else:
        pixels = _samples(data.train, counts, len(data.class_names), seed)
    model.images.start(preprocessing, pixels)


def _samples(images: ImageSet, counts: Mapping[str, int], num_classes: int, seed: int) -> dict[str, Tensor]:
    """Return training images, float32 ``[n, C, H, W]`` from 0 to 1, for each name; image i is of class ``i % classes``.

    No image is taken twice as long as there are others of its class. Where a class has none, any class will do.

    Args:
        images: The training set.
        counts: How many images are wanted, by name.
        num_classes: How many classes there are.
        seed: Decides which.
    """
    order = np.random.default_rng(derived_seed(seed, 0)).permutation(len(images))
    members = [order[images.labels[order] == label] for label in range(num_classes)]
    taken = [0] * num_classes
    found = {}
    for name, count in counts.items():
        pixels = []
        for place in range(count):
            label = place % num_classes
            candidates = members[label] if len(members[label]) else order
            pixels.append(images.decoded(int(candidates[taken[label] % len(candidates)])))
            taken[label] += 1
        found[name] = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return found


def _noise(shape: tuple[int, ...], counts: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Return images of grey noise, float32 ``[n, C, H, W]`` from 0 to 1, for each name.

    Args:
        shape: Of an image, ``(H, W, C)``.
        counts: How many images are wanted, by name.
        seed: Decides the noise.
    """
    random = np.random.default_rng(derived_seed(seed, 1))
    height, width, channels = shape
    drawn = {name: random.normal(0.5, _NOISE, (count, channels, height, width)) for name, count in counts.items()}
    return {name: torch.from_numpy(pixels.clip(0, 1)).float() for name, pixels in drawn.items()}
