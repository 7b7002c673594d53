"""The report of a finished training, with what it needs from the checkpoint and the images."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_runtime.explain import EXPLAINERS
from tnn_train.audit.section import audit_section, too_large_to_audit
from tnn_train.audit.subject import Subject
from tnn_train.data import ImageData, ImageSet
from tnn_train.data.images import even_sample
from tnn_train.heads.description import Sample, Section
from tnn_train.model.checkpoint import Checkpoint, load_checkpoint, versions
from tnn_train.report import RunSummary, write_report
from tnn_train.report.learned_images import look_at_images
from tnn_train.run_files import REPORT_FILE
from tnn_train.training.embeddings import cache_folder, embed, recall
from tnn_train.training.loop import TrainResult

__all__ = ["report_on", "sample_of"]

_EMBEDDED_IMAGES = 2000
_AUDITED_IMAGES = 100
_EXPLAINED_BYTES = 32 << 20
"""What the explanations of these images may take, pickled: several times as much in memory."""


def report_on(result: TrainResult, data: ImageData, device: torch.device, command: str | None = None) -> None:
    """Write ``report.html`` into the folder of a run.

    Args:
        result: The finished training.
        data: The images that it saw.
        device: Where to embed the training images that the head speaks of.
        command: What was typed.
    """
    best = load_checkpoint(result.best)
    sample, indices = sample_of(best, data, device)
    summary = RunSummary(
        name=data.name,
        history=result.history,
        test=result.test,
        test_images=data.test,
        class_names=data.class_names,
        config=best.training,
        head=best.model.head.cpu(),
        train_images=data.train,
        sample=sample,
        sample_indices=indices,
        images=look_at_images(best.model.cpu(), sample),
        versions=versions(),
        command=command,
        exemplars=best.exemplars,
        sections=_audit(best, data.test),
    )
    write_report(result.folder / REPORT_FILE, summary)


def _audit(best: Checkpoint, test: ImageSet) -> Sequence[Section]:
    """Return the section on explanations, for heads that have them."""
    if best.config.head not in EXPLAINERS:
        return ()
    first = Subject(best, test.sample(1), test.labels[:1])
    count = min(_AUDITED_IMAGES, _EXPLAINED_BYTES // len(pickle.dumps(first.explained)))
    if not count:
        return [too_large_to_audit()]
    some = test.subset(even_sample(len(test), count))
    return [audit_section(Subject(best, some.sample(len(some)), some.labels))]


def sample_of(checkpoint: Checkpoint, data: ImageData, device: torch.device) -> tuple[Sample, NDArray[np.int64]]:
    """Return some training images as the head of a checkpoint sees them, and which of them these are, int64 ``[n]``.

    Args:
        checkpoint: What was trained.
        data: The images that it saw.
        device: Where to embed them.
    """
    indices = even_sample(len(data.train), _EMBEDDED_IMAGES)
    images = data.normalized(checkpoint.preprocessing.mean, checkpoint.preprocessing.std).train
    embed_them = partial(_embeddings, checkpoint, images, indices, device)
    return Sample(data.train.labels[indices], data.class_names, embed_them), indices


def _embeddings(best: Checkpoint, images: ImageSet, indices: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the embeddings of some images, from those that a frozen backbone was trained on if they are kept."""
    recipe = best.training["train"]
    if recipe["freeze_backbone"]:
        whole = recall(best.model.backbone, images, cache_folder(recipe["embedding_cache"]))
        if whole is not None:
            return whole.embeddings[torch.from_numpy(indices)]
    return embed(best.model.backbone, images.subset(indices), device, None, recipe["workers"]).embeddings
