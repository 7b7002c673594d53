"""What an ensemble is compared with: its members, each run by itself, and the mean of what they answer.

That mean is taken in float64 from the members' logits, by another formula than that of the artifacts. The first stage
of the proof compares it with the mean that the eager heads of the members give on the members' embeddings, which all
artifacts are then compared with: embeddings, outputs and membership flips as for every other bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_export.ensemble.member import Member
from tnn_export.proof.parity import compare, cut, proof_batch_sizes
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import StageParity
from tnn_export.proof.running import Outputs, Ran, fresh_process
from tnn_export.proof.samples import Samples
from tnn_runtime.bundle.manifest import BatchBounds

__all__ = ["answers_of", "compare_members", "unseen"]


def answers_of(kind: str, file: Path, precision: str, samples: Samples, batch: BatchBounds) -> dict[str, NDArray[Any]]:
    """Return what a member answers to all samples, run by itself in a process of its own.

    Args:
        kind: The format of its artifact.
        file: The artifact.
        precision: What it was made in.
        samples: The samples.
        batch: The batch sizes that it takes.

    Returns:
        Its logits, ``[N, C]``, and its embeddings, ``[N, ...]``.
    """
    batches = cut(samples, proof_batch_sizes(batch)[-1:])
    ran = fresh_process(kind, file, "cpu", precision)([samples.images[rows] for rows in batches])
    return {
        name: np.concatenate([outputs[name] for outputs in ran.outputs])[: len(samples)]
        for name in ("logits", "embedding")
    }


def compare_members(
    reference: Reference, answers: Sequence[Mapping[str, NDArray[Any]]], members: Sequence[Member]
) -> StageParity:
    """Compare the mean of what the members answer with the reference.

    Args:
        reference: The heads of the members on their embeddings.
        answers: Of each member, as `answers_of` returns them.
        members: What is known of each.
    """
    logarithms = []
    for answer, member in zip(answers, members, strict=True):
        values = answer["logits"].astype(np.float64) / (member.temperature or 1.0)
        values -= np.logaddexp.reduce(values, axis=1, keepdims=True)
        logarithms.append(values if member.order is None else values[:, list(member.order)])
    mean = np.logaddexp.reduce(logarithms, axis=0) - math.log(len(members))
    given: Outputs = {"embedding": reference.embeddings.numpy(), "logits": mean.astype(np.float32)}

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        return Ran([given], f"numpy {np.__version__}")

    return compare(reference, run, "fp32", (len(reference.samples),))


def unseen(samples: Samples, others: Samples) -> int:
    """Return how many of the real samples are not among the real ones of another proof."""
    known = {image.tobytes() for image in others.images[others.is_real]}
    return sum(image.tobytes() not in known for image in samples.images[samples.is_real])
