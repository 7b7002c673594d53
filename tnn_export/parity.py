"""Proof that an artifact gives the logits of eager PyTorch.

A feature's membership jumps where its value crosses 0, and with it, for some measures, the logit. Two correct
implementations that differ in the last bits of a feature value can therefore differ visibly in a logit. Such a
difference is *explained* only if eager PyTorch itself gives the artifact's logits, within the same tolerance, once
some of the features within rounding distance of 0 are moved to the other side of it. Explained samples are counted
apart; everything else beyond the tolerance is a failure.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tnn_runtime.preprocess import Preprocessing
from tnn_train.heads import TverskyHead
from tnn_train.models import ImageModel, Normalize

__all__ = ["BATCH_SIZES", "FormatParity", "ParityReport", "Reference", "check_parity"]

BATCH_SIZES = (1, 7, 64)

RELATIVE_TOLERANCE = 1e-4
"""Allowed difference of a logit, relative to the largest magnitude among the sample's logits, and at least to 1."""

BOUNDARY = 1e-5
"""A feature may be on either side of 0 if ``|a_k| <= BOUNDARY * |x| |omega_k|``."""

_MOST_FLIPS = 12

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class FormatParity:
    """How one artifact compares with eager PyTorch.

    Args:
        passed: Whether every sample is equal within the tolerance, or explained.
        samples: How many distinct images were compared, each in every batch size.
        batch_sizes: The batch sizes that were run.
        max_abs_diff: Largest absolute difference of a logit over the samples that are not explained.
        max_rel_diff: The same, relative as in ``RELATIVE_TOLERANCE``.
        tolerance: The allowed relative difference.
        explained: How many samples differ by proven membership flips.
        failed: How many differ without such a proof.
        worst_sample: Position of the sample with the largest relative difference that is not explained.
        top1_agreement: Share of samples with the same best class in every batch size.
    """

    passed: bool
    samples: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float
    explained: int
    failed: int
    worst_sample: int
    top1_agreement: float


@dataclass(frozen=True)
class ParityReport:
    """The comparison of every exported format with eager PyTorch."""

    formats: Mapping[str, FormatParity]

    @property
    def passed(self) -> bool:
        """Whether every format passed."""
        return all(parity.passed for parity in self.formats.values())

    def summary(self) -> str:
        """Return the comparison in one line."""
        return "; ".join(
            f"{name}: {'passed' if p.passed else 'FAILED'}, {p.samples} samples, largest difference "
            f"{p.max_abs_diff:.2e} "
            f"(relative {p.max_rel_diff:.2e}, allowed {p.tolerance:.0e}), {p.explained} explained, {p.failed} failed"
            for name, p in self.formats.items()
        )

    def table(self) -> str:
        """Return the comparison as a table, one line for each format."""
        lines = [
            f"{'format':<12} {'parity':<7} {'samples':>7} {'max diff':>9} {'relative':>9} {'allowed':>8} "
            f"{'explained':>9} {'top-1':>7}"
        ]
        lines += [
            f"{name:<12} {'passed' if p.passed else 'FAILED':<7} {p.samples:>7} {p.max_abs_diff:>9.2e} "
            f"{p.max_rel_diff:>9.2e} "
            f"{p.tolerance:>8.0e} {p.explained:>9} {p.top1_agreement:>7.2%}"
            for name, p in self.formats.items()
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the report as plain values, one dictionary for each format."""
        return {name: dataclasses.asdict(parity) for name, parity in self.formats.items()}


class Reference:
    """Eager PyTorch on a set of images: what an artifact has to reproduce.

    Args:
        model: The trained model; it runs on the CPU in float32 and evaluation mode.
        preprocessing: The normalisation.
        images: Distinct images, uint8 ``[N, H, W, C]``.
    """

    def __init__(self, model: ImageModel, preprocessing: Preprocessing, images: NDArray[np.uint8]) -> None:
        self.images = images
        self._head = model.head
        normalize = Normalize(preprocessing)
        batches = torch.split(torch.from_numpy(images), max(BATCH_SIZES))
        with torch.inference_mode():
            self._embeddings = torch.cat([model.backbone(normalize(batch)) for batch in batches])
            logits = torch.cat([model.head(x) for x in torch.split(self._embeddings, max(BATCH_SIZES))])
        self.logits: NDArray[np.float32] = logits.numpy()
        self.scale = np.maximum(1.0, np.abs(self.logits).max(axis=1, keepdims=True))

    def explains(self, sample: int, logits: NDArray[np.float32]) -> bool:
        """Return whether membership flips within rounding distance turn the eager logits into ``logits [P]``."""
        if not isinstance(self._head, TverskyHead):
            return False
        with torch.inference_mode():
            x = self._embeddings[sample : sample + 1]
            a = self._head.project(x)
            near = (a.abs() <= BOUNDARY * self._head.reach(x)).flatten().nonzero().flatten()
            if not 0 < len(near) <= _MOST_FLIPS:
                return False
            variants = a.repeat(2 ** len(near), 1)
            sides = torch.tensor(list(itertools.product((0.0, _TINY), repeat=len(near))))
            variants[:, near] = sides
            difference = (self._head.score(variants) - torch.from_numpy(logits)).abs().amax(1)
        return bool(difference.min() <= RELATIVE_TOLERANCE * float(self.scale[sample, 0]))

    def margins(self) -> NDArray[np.float32]:
        """Return how far each sample is from the nearest membership boundary, relative to the reach of its features."""
        if not isinstance(self._head, TverskyHead):
            return np.full(len(self.images), np.inf, dtype=np.float32)
        with torch.inference_mode():
            values = self._head.project(self._embeddings).abs()
            return np.asarray((values / self._head.reach(self._embeddings).clamp_min(_TINY)).amin(1).numpy())


_TINY = float(torch.finfo(torch.float32).tiny)


def check_parity(
    reference: Reference, artifacts: Mapping[str, Runner], batch_sizes: Sequence[int] = BATCH_SIZES
) -> ParityReport:
    """Compare artifacts with eager PyTorch on every image of ``reference``, once for each batch size.

    Args:
        reference: The eager model on the images.
        artifacts: For each format a function from uint8 images ``[n, H, W, C]`` to logits ``[n, classes]``.
        batch_sizes: How the images are cut into batches.

    Returns:
        The report; it is up to the caller to refuse an artifact that failed.
    """
    return ParityReport({name: _compare(reference, run, tuple(batch_sizes)) for name, run in artifacts.items()})


def _compare(reference: Reference, run: Runner, batch_sizes: tuple[int, ...]) -> FormatParity:
    count = len(reference.images)
    status = np.zeros(count, dtype=int)
    absolute, relative = np.zeros(count), np.zeros(count)
    agreed = np.ones(count, dtype=bool)
    for size in batch_sizes:
        # Every batch is full: the last one is filled up with the first images again.
        order = np.resize(np.arange(count), -(-count // size) * size)
        logits = np.concatenate([run(reference.images[batch]) for batch in order.reshape(-1, size)])[:count]
        difference = np.abs(logits - reference.logits)
        difference[~np.isfinite(difference)] = np.inf
        scaled = np.nan_to_num((difference / reference.scale).max(axis=1), nan=np.inf)
        agreed &= logits.argmax(1) == reference.logits.argmax(1)
        for sample in range(count):
            if scaled[sample] > RELATIVE_TOLERANCE and reference.explains(sample, logits[sample]):
                status[sample] = max(status[sample], _EXPLAINED)
                continue
            if scaled[sample] > RELATIVE_TOLERANCE:
                status[sample] = _FAILED
            absolute[sample] = max(absolute[sample], difference[sample].max())
            relative[sample] = max(relative[sample], scaled[sample])
    failed = int((status == _FAILED).sum())
    return FormatParity(
        passed=failed == 0,
        samples=count,
        batch_sizes=batch_sizes,
        max_abs_diff=float(absolute.max()),
        max_rel_diff=float(relative.max()),
        tolerance=RELATIVE_TOLERANCE,
        explained=int((status == _EXPLAINED).sum()),
        failed=failed,
        worst_sample=int(relative.argmax()),
        top1_agreement=float(agreed.mean()),
    )


_EXPLAINED, _FAILED = 1, 2
