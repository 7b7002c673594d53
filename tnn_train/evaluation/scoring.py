"""Evaluation of a model, or of its trained part, on labelled items."""

from __future__ import annotations

import torch
from torch import nn
from tqdm import tqdm

from tnn_train.data import ImageSet
from tnn_train.data.loader import Items, evaluation_loader
from tnn_train.distributed import Processes
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = ["evaluate", "score"]


def evaluate(model: ImageModel, images: ImageSet, *, batch_size: int = 64) -> Evaluation:
    """Return a model's answers on a set, in evaluation mode.

    Args:
        model: The model, on any device.
        images: The images.
        batch_size: How many of them at a time.
    """
    device = next(model.parameters()).device
    return score(model, Normalize(images.preprocessing).to(device), images, Processes(0, 1, device), batch_size)


def score(
    learner: nn.Module,
    prepare: nn.Module,
    items: Items,
    processes: Processes,
    batch_size: int = 64,
    workers: int | None = None,
) -> Evaluation:
    """Return the answers of a model, or of a part of one, each process computing its share.

    Args:
        learner: From inputs to logits ``[N, C]``.
        prepare: From batches of items to inputs.
        items: Pairs of an item and its label.
        processes: Who shares the work.
        batch_size: Items at a time.
        workers: Processes that decode images; ``None`` for none if they are in memory, else up to four.
    """
    learner.eval()
    logits, labels = [], []
    loader = evaluation_loader(items, batch_size, processes.rank, processes.count, workers)
    hidden = None if processes.is_first else True
    with torch.inference_mode():
        for batch, target in tqdm(loader, desc="evaluating", unit="batch", disable=hidden, leave=False, delay=1):
            logits.append(learner(prepare(batch.to(processes.device))).float().cpu())
            labels.append(target)
    return Evaluation.of(processes.interleave(torch.cat(logits)), processes.interleave(torch.cat(labels)))
