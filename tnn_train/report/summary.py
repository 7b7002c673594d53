"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import UsageError
from tnn_train.data import ImageSet
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.heads import Head
from tnn_train.heads.description import Sample, Section

__all__ = ["RunSummary"]


@dataclass(frozen=True)
class RunSummary:
    """A finished training, as `tnn_train.report.write_report` shows it.

    Args:
        name: The data set or the run: the title.
        history: One dictionary for each epoch, as in ``metrics.jsonl``; at least one.
        test: The best checkpoint on the test set.
        test_images: The images behind ``test``, in the same order.
        class_names: One name for each class.
        config: All settings, nested; ``config["model"]`` names the ``backbone`` and the ``head``.
        head: The trained head.
        train_images: The training images, without augmentation.
        sample: Some of them as the head sees them, for what it has to say; see `tnn_train.data.images.even_sample`.
        sample_indices: Which of ``train_images`` these are, int64 ``[n]``.
        versions: Of the packages.
        command: What was typed.
        sections: What else the report shall say, below what the head says of itself.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    test: Evaluation
    test_images: ImageSet
    class_names: Sequence[str]
    config: Mapping[str, Any]
    head: Head
    train_images: ImageSet
    sample: Sample | None = None
    sample_indices: NDArray[np.int64] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        if not self.history:
            raise UsageError("the history has no epochs; expected at least one row of metrics.jsonl")
        counts = {
            "test images and answers": (len(self.test_images), len(self.test.labels)),
            "class names and logits": (len(self.class_names), self.test.logits.shape[1]),
            "images of the sample and their indices": (
                0 if self.sample is None else len(self.sample.labels),
                0 if self.sample_indices is None else len(self.sample_indices),
            ),
        }
        for what, (one, other) in counts.items():
            if one != other:
                raise UsageError(f"got {one} and {other} {what}; expected as many of one as of the other")
