"""The report of a finished training, with what it needs from the checkpoint and the images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_runtime.explain import EXPLAINERS
from tnn_train.audit.section import audit_section
from tnn_train.audit.subject import Subject
from tnn_train.data import ImageData, ImageSet
from tnn_train.data.images import even_sample
from tnn_train.heads.description import Sample, Section
from tnn_train.model.checkpoint import Checkpoint, load_checkpoint, versions
from tnn_train.report import RunSummary, write_report
from tnn_train.run_files import REPORT_FILE
from tnn_train.training.embeddings import cache_folder, embed, recall
from tnn_train.training.loop import TrainResult

__all__ = ["report_on"]

_EMBEDDED_IMAGES = 2000
_AUDITED_IMAGES = 100


def report_on(result: TrainResult, data: ImageData, device: torch.device, command: str | None = None) -> None:
    """Write ``report.html`` into the folder of a run.

    Args:
        result: The finished training.
        data: The images that it saw.
        device: Where to embed the training images that the head speaks of.
        command: What was typed.
    """
    best = load_checkpoint(result.best)
    indices = even_sample(len(data.train), _EMBEDDED_IMAGES)
    images = data.normalized(best.preprocessing.mean, best.preprocessing.std).train
    summary = RunSummary(
        name=data.name,
        history=result.history,
        test=result.test,
        test_images=data.test,
        class_names=data.class_names,
        config=best.training,
        head=best.model.head.cpu(),
        train_images=data.train,
        sample=Sample(
            data.train.labels[indices], data.class_names, partial(_embeddings, best, images, indices, device)
        ),
        sample_indices=indices,
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
    some = test.subset(even_sample(len(test), _AUDITED_IMAGES))
    return [audit_section(Subject(best, some.sample(len(some)), some.labels))]


def _embeddings(best: Checkpoint, images: ImageSet, indices: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the embeddings of some images, from those that a frozen backbone was trained on if they are kept."""
    recipe = best.training["train"]
    if recipe["freeze_backbone"]:
        whole = recall(best.model.backbone, images, cache_folder(recipe["embedding_cache"]))
        if whole is not None:
            return whole.embeddings[torch.from_numpy(indices)]
    return embed(best.model.backbone, images.subset(indices), device, None, recipe["workers"]).embeddings
