"""Proof that an artifact gives the outputs of eager PyTorch in float32.

Three things are compared for every sample: the embedding; the head's outputs with those that the eager head gives on
the artifact's *own* embedding, which float32 rounding alone may separate in every precision; and the outputs with those
of the eager model, which the precision may separate.

Feature maps are compared twice: with those of eager PyTorch, which the precision may separate, and pooled, for most
heads by the mean over all places, with the features that the eager head finds in the artifact's own embedding.

In int8 the ranges of activations are those of real images, so that made ones may saturate: their embeddings are bounded
in the other precisions only, and where there are no real images. What real images say of all like them is decided in
`tnn_export.proof.agreement`.

A feature's membership jumps where its value crosses 0, and with it, for some measures, the logit. Two correct
implementations that differ in the last bits of a feature value can therefore differ visibly in a logit. Such a
difference is *explained* only if the eager head gives the artifact's outputs, within the same tolerances, once features
are moved to the side of 0 that they have in the artifact: the side that follows from its embedding, or, for features
within rounding distance of 0, either. Explained samples are counted apart; everything else beyond a tolerance is a
failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.formats.precision import HEAD_TOLERANCE, PRECISIONS
from tnn_export.proof.agreement import judge_classes
from tnn_export.proof.reference import Reference, largest
from tnn_export.proof.report import Flip, ParityReport, StageParity
from tnn_export.proof.running import Ran, Runner
from tnn_export.proof.samples import Samples
from tnn_runtime.bundle.manifest import FEATURE_MAPS, BatchBounds

__all__ = ["BATCH_SIZES", "check_parity", "compare", "cut", "proof_batch_sizes"]

BATCH_SIZES = (1, 7, 64)

_REAL_IN_SMALL_BATCHES = 16
_KEPT_FLIPS = 20


def check_parity(
    reference: Reference,
    artifacts: Mapping[str, Runner],
    precision: str = "fp32",
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> ParityReport:
    """Compare artifacts with eager PyTorch: every sample in batches of the largest size, and some in the others.

    Args:
        reference: The eager model on the samples.
        artifacts: For each format what runs it.
        precision: What the artifacts were made in.
        batch_sizes: How the images are cut into batches.

    Returns:
        The report; it is up to the caller to refuse an artifact that failed.
    """
    return ParityReport(
        {name: compare(reference, run, precision, tuple(batch_sizes)) for name, run in artifacts.items()}
    )


def proof_batch_sizes(bounds: BatchBounds) -> tuple[int, ...]:
    """Return the batch sizes of a proof: the smallest, one between and the largest; `BATCH_SIZES` where none is."""
    low, high = bounds.smallest, bounds.largest
    sizes = (max(low, size) for size in BATCH_SIZES) if high is None else (low, min(low + 6, high), high)
    return tuple(sorted(set(sizes)))


def compare(reference: Reference, run: Runner, precision: str, batch_sizes: tuple[int, ...]) -> StageParity:
    """Compare one artifact with eager PyTorch, as `check_parity`."""
    batches = cut(reference.samples, batch_sizes)
    ran = run([reference.samples.images[rows] for rows in batches])
    return _judge(reference, batches, ran, precision, batch_sizes)


def cut(samples: Samples, sizes: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Return the positions of the samples of each batch; each is full, the last one filled up with the first again."""
    is_real = samples.is_real
    few = np.flatnonzero(~is_real | (np.cumsum(is_real) <= _REAL_IN_SMALL_BATCHES))
    batches: list[NDArray[np.int64]] = []
    for size in sizes:
        chosen = np.arange(len(samples)) if size == max(sizes) else few
        batches += list(np.resize(chosen, (-(-len(chosen) // size), size)))
    return batches


def _judge(
    reference: Reference, batches: Sequence[NDArray[np.int64]], ran: Ran, precision: str, batch_sizes: tuple[int, ...]
) -> StageParity:
    bounds = PRECISIONS[precision]
    samples = reference.samples
    count = len(samples)
    absolute, relative, of_head, distance, seen, of_maps, of_means = np.zeros((7, count))
    allowed = np.inf if bounds.tolerance is None else bounds.tolerance
    is_bounded = samples.is_real | (bounds.tolerance is not None or not samples.is_real.any())
    agreed = np.ones(count, dtype=bool)
    best = np.full(count, -1)
    failed, flips = np.zeros(count, dtype=bool), dict[int, Flip]()
    eager_best = reference.outputs["logits"].argmax(1).numpy()
    for rows, outputs in zip(batches, ran.outputs, strict=True):
        found = {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}
        embedding, maps = found.pop("embedding"), found.pop(FEATURE_MAPS, None)
        places = torch.from_numpy(rows)
        far = _norm(embedding - reference.embeddings[places]) / reference.lengths[places]
        expected = {name: value[places] for name, value in reference.outputs.items()}
        of_model = reference.differences(places, found, expected)
        with torch.inference_mode():
            own = reference.differences(places, found, reference.head_outputs(embedding))
            if maps is not None:
                for worst_of, values in zip(
                    (of_maps, of_means), reference.feature_differences(places, maps, embedding), strict=True
                ):
                    np.maximum.at(worst_of, rows, values.numpy())
        logit = largest(found["logits"] - expected["logits"])
        chosen = found["logits"].argmax(1).numpy()
        good = (own <= HEAD_TOLERANCE) & (of_model <= allowed)
        good &= torch.isfinite(of_model)
        for place, row in enumerate(rows.tolist()):
            distance[row] = max(distance[row], float(far[place]))
            seen[row] = max(seen[row], float(of_model[place]))
            agreed[row] &= chosen[place] == eager_best[row]
            best[row] = chosen[place]
            if is_bounded[row] and far[place] > bounds.embedding_tolerance:
                failed[row] = True
            elif not good[place]:
                one = {name: value[place : place + 1] for name, value in found.items()}
                with torch.inference_mode():
                    flip = reference.explain(row, embedding[place : place + 1], one, bounds.tolerance)
                if flip is not None:
                    flips.setdefault(row, flip)
                    continue
                failed[row] = True
            absolute[row] = max(absolute[row], float(logit[place]))
            relative[row] = max(relative[row], float(of_model[place]))
            of_head[row] = max(of_head[row], float(own[place]))
    failed |= (of_means > HEAD_TOLERANCE) | ~(of_maps <= allowed)
    explained = [flip for row, flip in sorted(flips.items()) if not failed[row]]
    worst = int(relative.argmax())
    measured = (
        ("the embedding", np.where(is_bounded, distance, 0), bounds.embedding_tolerance),
        ("the outputs on its own embedding", of_head, HEAD_TOLERANCE),
        ("the outputs", relative, min(allowed, _LARGEST)),
        ("the feature maps", of_maps, min(allowed, _LARGEST)),
        ("the feature maps, pooled, from the features", of_means, HEAD_TOLERANCE),
    )
    known = samples.labels >= 0
    right, eager_right = (found[known] == samples.labels[known] for found in (best, eager_best))
    classes = judge_classes(bounds, agreed[samples.is_real], right, eager_right)
    problems = (*_problems(failed, samples, measured), *classes.problems)
    return StageParity(
        passed=not problems,
        problems=problems,
        precision=precision,
        library=ran.library,
        samples={kind: samples.kinds.count(kind) for kind in dict.fromkeys(samples.kinds)},
        batch_sizes=batch_sizes,
        max_abs_diff=_number(absolute.max()),
        max_rel_diff=_number(relative.max()),
        tolerance=bounds.tolerance,
        max_embedding_diff=_number(distance.max()),
        embedding_tolerance=bounds.embedding_tolerance,
        explained=len(explained),
        flips=tuple(explained[:_KEPT_FLIPS]),
        failed=int(failed.sum()),
        worst_sample=worst,
        worst_kind=samples.kinds[worst],
        top1_agreement=classes.top1,
        accuracy=classes.accuracy,
        eager_accuracy=classes.eager_accuracy,
        relative=tuple(float(f"{_number(value):.3g}") for value in seen),
        agreement_interval=classes.top1_interval,
        loss_interval=classes.loss_interval,
        undecided=classes.undecided,
        notes=ran.notes,
        max_map_diff=None if reference.maps is None else _number(of_maps.max()),
        max_mean_diff=None if reference.maps is None else _number(of_means.max()),
    )


def _problems(
    failed: NDArray[np.bool_], samples: Samples, measured: Sequence[tuple[str, NDArray[np.float64], float]]
) -> list[str]:
    """Say in one line what is beyond its tolerance in the samples that failed, if any did.

    Args:
        failed: Which of the samples did, ``[N]``.
        samples: The samples.
        measured: What was measured, the values ``[N]``, and the tolerance.
    """
    excesses = []
    for what, values, allowed in measured:
        worst = int(np.where(failed, values, -1).argmax())
        if failed[worst] and values[worst] > allowed:
            excesses.append(
                f"{what} by up to {values[worst]:.2e} (sample {worst}, {samples.kinds[worst]}; allowed {allowed:.0e})"
            )
    differences = ", ".join(excesses) or "outputs that are no numbers"
    text = f"{failed.sum()} of {len(samples)} samples differ, with no membership flip to explain it: {differences}"
    return [text] if failed.any() else []


def _number(value: float) -> float:
    """Return a number that JSON can hold."""
    return min(float(value), _LARGEST)


_LARGEST = float(np.finfo(np.float32).max)


def _norm(differences: Tensor) -> Tensor:
    return torch.nan_to_num(torch.linalg.vector_norm(differences.flatten(1), dim=1), nan=torch.inf)
