"""How much each batch counts in a step of the optimizer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from tnn_train.data.loader import EpochBatches

__all__ = ["Share", "Shares", "balanced_weights"]


class Share(NamedTuple):
    """What the part of a batch that a process has counts for.

    Args:
        of_step: Its share in the loss of the step that the batch belongs to; all parts of a step sum up to 1.
        loss_images: How many images its mean loss stands for in the mean of an epoch.
        images: How many images it has.
    """

    of_step: float
    loss_images: float
    images: int


class Shares:
    """Shares with which the gradient of a step is that of one large batch, in one process.

    The loss of a batch is a mean over its images, weighted by their classes. The mean over several batches is not the
    mean of their means where they differ in size or in weight: each counts by the weight of its images.

    Args:
        batches: The batches of this process.
        labels: The classes of all training images, int64 ``[N]``.
        weights: How much images of each class count, ``[C]``; ``None`` for all alike.
        accumulate: How many batches make a step; the last step of an epoch has what is left.
    """

    def __init__(
        self,
        batches: EpochBatches,
        labels: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
        accumulate: int,
    ) -> None:
        self._batches, self._accumulate = batches, accumulate
        self._weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)[labels]

    def __getitem__(self, batch: int) -> Share:
        """Return the share of a batch of the running epoch."""
        first = batch - batch % self._accumulate
        step = self._batches.whole(first, first + self._accumulate)
        whole, part = self._batches.whole(batch, batch + 1), self._batches.part(batch)
        ours = self._weight(part)
        return Share(ours / self._weight(step), ours / self._weight(whole) * len(whole), len(part))

    def _weight(self, images: NDArray[np.int64]) -> float:
        return float(self._weights[images].sum())


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    """Return how much images of each class count, float32 ``[num_classes]``, so that all classes count alike.

    It is 1 on average over the images, and for a class without any.
    """
    present = np.unique(labels)
    weights = np.ones(num_classes, np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights
