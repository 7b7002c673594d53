"""Means of the embeddings of each class, where prototypes start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tnn_train.errors import TrainingError

__all__ = ["class_means"]


def class_means(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, num_prototypes: int, option: str = "num_prototypes"
) -> Tensor:
    """Return means of embeddings, ``[num_prototypes, D]``, in one pass; prototype p is of class ``p % num_classes``.

    The embeddings of a class with several prototypes take turns, so that its prototypes differ.

    Args:
        batches: Embeddings ``[n, D]`` and class indices, int64 ``[n]``.
        num_classes: C.
        num_prototypes: P.
        option: What an error calls the option that decides P.

    Raises:
        TrainingError: If a class has fewer embeddings than prototypes.
    """
    classes = torch.arange(num_classes)
    owned = (num_prototypes - classes + num_classes - 1) // num_classes
    seen = torch.zeros(num_classes, dtype=torch.int64)
    sums: Tensor | None = None
    for embeddings, labels in batches:
        x, y = embeddings.detach().double().cpu(), labels.cpu()
        one_hot = nn.functional.one_hot(y, num_classes)
        turn = seen[y] + (one_hot.cumsum(0) - one_hot)[torch.arange(len(y)), y]
        seen += one_hot.sum(0)
        kept = owned[y] > 0
        prototype = (y + num_classes * (turn % owned[y].clamp_min(1)))[kept]
        if sums is None:
            sums = x.new_zeros(num_prototypes, x.shape[1])
        sums.index_add_(0, prototype, x[kept])
    for label in classes.tolist():
        if seen[label] < owned[label]:
            raise TrainingError(
                f"class {label} has {int(seen[label])} images for {int(owned[label])} prototypes to start from; choose "
                f"fewer with {option}"
            )
    if sums is None:
        raise TrainingError("there are no embeddings to take class means of")
    label = torch.arange(num_prototypes) % num_classes
    turn = torch.arange(num_prototypes) // num_classes
    counts = (seen[label] - turn + owned[label] - 1) // owned[label]
    return (sums / counts.unsqueeze(1)).float()
