"""Proof that an artifact gives the outputs of eager PyTorch in float32.

Three things are compared for every sample: the embedding; the head's outputs with those that the eager head gives on
the artifact's *own* embedding, which float32 rounding alone may separate in every precision; and the outputs with those
of the eager model, which the precision may separate.

A feature's membership jumps where its value crosses 0, and with it, for some measures, the logit. Two correct
implementations that differ in the last bits of a feature value can therefore differ visibly in a logit. Such a
difference is *explained* only if the eager head gives the artifact's outputs, within the same tolerances, once features
are moved to the side of 0 that they have in the artifact: the side that follows from its embedding, or, for features
within rounding distance of 0, either. Explained samples are counted apart; everything else beyond a tolerance is a
failure.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tnn_export.precision import PRECISIONS, Precision
from tnn_export.running import Ran, Runner
from tnn_export.samples import Samples
from tnn_runtime.manifest import BatchBounds
from tnn_runtime.preprocess import Preprocessing
from tnn_train.heads import TverskyHead
from tnn_train.models import ImageModel, Normalize

__all__ = [
    "BATCH_SIZES",
    "Flip",
    "ParityReport",
    "Reference",
    "StageParity",
    "check_parity",
    "compare",
    "proof_batch_sizes",
]

BATCH_SIZES = (1, 7, 64)

_HEAD_TOLERANCE = PRECISIONS["fp32"].tolerance or 0.0

BOUNDARY = 1e-5
"""A feature of an embedding may be on either side of 0 if ``|a_k| <= BOUNDARY * |x| |omega_k|``."""

_MOST_UNSURE = 12
_REAL_IN_SMALL_BATCHES = 16
_SHORTEST = 1e-3
_KEPT_FLIPS = 20
_TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Flip:
    """A proven difference.

    Args:
        sample: Position of the sample.
        features: Those that lie on the other side of 0 in the artifact.
        jump: What that changes, the largest absolute difference of a logit.
    """

    sample: int
    features: tuple[int, ...]
    jump: float


@dataclass(frozen=True)
class StageParity:
    """How one artifact, or the lowered head, compares with eager PyTorch.

    Args:
        passed: Whether there is no problem.
        problems: What is wrong, one line each.
        precision: A key of `tnn_export.precision.PRECISIONS`.
        library: What ran it.
        samples: How many samples there are of each kind.
        batch_sizes: The batch sizes that were run.
        max_abs_diff: Largest absolute difference of a logit over the samples that are not explained.
        max_rel_diff: The same of any output, relative as in `Precision.tolerance`.
        tolerance: The allowed relative difference; ``None`` where only the agreement counts.
        max_embedding_diff: Largest distance of an embedding, relative to its length.
        embedding_tolerance: The allowed one.
        explained: How many samples differ by proven membership flips.
        flips: The first of them.
        failed: How many differ without such a proof.
        worst_sample: Position of the sample with the largest relative difference that is not explained.
        worst_kind: Its kind.
        top1_agreement: Share of real images with the same best class in every batch; ``None`` without real images.
        accuracy: Of the artifact on the real images whose classes are known; ``None`` if there are none.
        eager_accuracy: Of eager PyTorch on the same images.
        relative: The largest relative difference of each sample, explained ones included.
    """

    passed: bool
    problems: tuple[str, ...]
    precision: str
    library: str
    samples: dict[str, int]
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float | None
    max_embedding_diff: float
    embedding_tolerance: float
    explained: int
    flips: tuple[Flip, ...]
    failed: int
    worst_sample: int
    worst_kind: str
    top1_agreement: float | None
    accuracy: float | None
    eager_accuracy: float | None
    relative: tuple[float, ...]


@dataclass(frozen=True)
class ParityReport:
    """The comparison of every stage with eager PyTorch.

    Args:
        stages: ``lowered head``, and each exported format.
        unproven: Artifacts that could not be run, each with the reason.
    """

    stages: Mapping[str, StageParity]
    unproven: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(parity.passed for parity in self.stages.values())

    def summary(self) -> str:
        """Return what is wrong in one line, or that nothing is."""
        problems = [f"{name}: {problem}" for name, parity in self.stages.items() for problem in parity.problems]
        return "; ".join(problems) or f"{', '.join(self.stages)} passed"

    def table(self) -> str:
        """Return the comparison as a table, one line for each stage."""
        rows = [
            (
                "stage",
                "precision",
                "parity",
                "samples",
                "max diff",
                "relative",
                "allowed",
                "embedding",
                "explained",
                "top-1",
                "accuracy",
            )
        ]
        for name, p in self.stages.items():
            accuracy = "-" if p.accuracy is None else f"{p.accuracy:.2%} of {p.eager_accuracy:.2%}"
            rows.append(
                (
                    name,
                    p.precision,
                    "passed" if p.passed else "FAILED",
                    str(sum(p.samples.values())),
                    f"{p.max_abs_diff:.2e}",
                    f"{p.max_rel_diff:.2e}",
                    "-" if p.tolerance is None else f"{p.tolerance:.0e}",
                    f"{p.max_embedding_diff:.1e}",
                    str(p.explained),
                    "-" if p.top1_agreement is None else f"{p.top1_agreement:.2%}",
                    accuracy,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell:<{width}}" if place < 3 else f"{cell:>{width}}"
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ) + "".join(f"\n{file}: NOT PROVEN, {reason}" for file, reason in self.unproven.items())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the report as plain values that JSON can hold, one dictionary for each stage."""
        return {name: dataclasses.asdict(parity) for name, parity in self.stages.items()}


class Reference:
    """Eager PyTorch on a set of samples: what an artifact has to reproduce.

    Args:
        head: The trained head, in float32.
        samples: The images.
        embeddings: Of eager PyTorch, float32 ``[N, D]``.
        parts: Whether to have the similarities to the prototypes and what they are made of, too.
    """

    def __init__(self, head: nn.Module, samples: Samples, embeddings: Tensor, *, parts: bool = False) -> None:
        self.head = copy.deepcopy(head).cpu().eval()
        self.has_parts = parts
        self.samples = samples
        self.embeddings = embeddings
        with torch.inference_mode():
            values = [self._values(x) for x in torch.split(embeddings, max(BATCH_SIZES))]
            self.outputs = _joined([self._outputs(a) for a in values])
            self.features = torch.cat(values)
        # The length of an embedding that is all but 0 is no measure of its error.
        lengths = torch.linalg.vector_norm(embeddings, dim=1)
        self.lengths = lengths.clamp_min(_SHORTEST * float(lengths.max())).clamp_min(_TINY)

    @classmethod
    def of(cls, model: ImageModel, preprocessing: Preprocessing, samples: Samples, *, parts: bool = False) -> Reference:
        """Run a trained model, on the CPU in float32 and evaluation mode."""
        normalize = Normalize(preprocessing)
        batches = torch.split(torch.from_numpy(samples.images), max(BATCH_SIZES))
        backbone = copy.deepcopy(model.backbone).cpu().eval()
        with torch.inference_mode():
            embeddings = torch.cat([backbone(normalize(batch)) for batch in batches])
        return cls(model.head, samples, embeddings, parts=parts)

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of eager PyTorch, ``[N, C]``."""
        return np.asarray(self.outputs["logits"].numpy())

    @property
    def scale(self) -> NDArray[np.float32]:
        """What differences of logits are relative to, ``[N, 1]``."""
        return np.asarray(_scale(self.outputs["logits"]).numpy())[:, None]

    def margins(self) -> NDArray[np.float32]:
        """Return how far each sample is from the nearest membership boundary, relative to the reach of its features."""
        if not isinstance(self.head, TverskyHead):
            return np.full(len(self.samples), np.inf, dtype=np.float32)
        with torch.inference_mode():
            reach = self.head.reach(self.embeddings).clamp_min(_TINY)
            return np.asarray((self.features.abs() / reach).amin(1).numpy())

    def differences(self, rows: Tensor, outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
        """Return the largest relative difference of each sample, ``[n]``.

        Args:
            rows: Positions of the samples, ``[n]``.
            outputs: Of an artifact.
            expected: Of the eager head on whatever features.
        """
        pairs = [(value, expected[name], self.outputs[name][rows]) for name, value in outputs.items()]
        return torch.stack([_largest(found - value) / _scale(eager) for found, value, eager in pairs]).amax(0)

    def head_outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return what the eager head makes of embeddings ``[n, D]``."""
        return self._outputs(self._values(embeddings))

    def explain(
        self, row: int, embedding: Tensor, outputs: Mapping[str, Tensor], tolerance: float | None
    ) -> Flip | None:
        """Return the membership flips that turn the eager outputs into those of an artifact, if there are any.

        Args:
            row: Position of the sample.
            embedding: The artifact's, ``[1, D]``.
            outputs: The artifact's, ``[1, ...]`` each.
            tolerance: The precision's.
        """
        if not isinstance(self.head, TverskyHead) or not torch.isfinite(embedding).all():
            return None
        own = self._values(embedding)
        unsure = (own.abs() <= BOUNDARY * self.head.reach(embedding)).flatten().nonzero().flatten()
        if len(unsure) > _MOST_UNSURE:
            return None
        sides = (own > 0).repeat(2 ** len(unsure), 1)
        sides[:, unsure] = torch.tensor(list(itertools.product((False, True), repeat=len(unsure))), dtype=torch.bool)
        rows = torch.full((len(sides),), row)
        repeated = {name: value.expand(len(sides), *value.shape[1:]) for name, value in outputs.items()}
        of_head = self.differences(rows, repeated, self._outputs(_moved(own, sides)))
        eager = self.features[row : row + 1]
        moved = self._outputs(_moved(eager, sides))
        of_model = self.differences(rows, repeated, moved)
        fits = of_head <= _HEAD_TOLERANCE
        if tolerance is not None:
            fits &= of_model <= tolerance
        if not fits.any():
            return None
        best = int(torch.where(fits, of_model, torch.inf).argmin())
        features = ((eager > 0) != sides[best : best + 1]).flatten().nonzero().flatten().tolist()
        jump = (moved["logits"][best] - self.outputs["logits"][row]).abs().max()
        return Flip(row, tuple(features), float(jump))

    def _values(self, embeddings: Tensor) -> Tensor:
        return self.head.project(embeddings) if isinstance(self.head, TverskyHead) else embeddings

    def _outputs(self, values: Tensor) -> dict[str, Tensor]:
        head = self.head
        logits = head.score(values) if isinstance(head, TverskyHead) else head(values)
        outputs = {"logits": logits, "probabilities": torch.softmax(logits, 1)}
        if self.has_parts and isinstance(head, TverskyHead):
            prototypes = head.project(head.prototypes)
            parts = head.parts(values, prototypes)
            outputs |= {
                "similarities": head.compare(values, prototypes),
                "common": parts.common * (head.theta if head.config.model == "contrast" else 1.0),
                "input_only": parts.input_only * head.alpha,
                "prototype_only": parts.prototype_only * head.beta,
            }
        return outputs


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
    batches = _batches(reference.samples, batch_sizes)
    ran = run([reference.samples.images[rows] for rows in batches])
    return _judge(reference, batches, ran, precision, batch_sizes)


def _batches(samples: Samples, sizes: tuple[int, ...]) -> list[NDArray[np.int64]]:
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
    absolute, relative, distance = np.zeros(count), np.zeros(count), np.zeros(count)
    seen = np.zeros(count)
    agreed = np.ones(count, dtype=bool)
    best = np.full(count, -1)
    failed, flips = np.zeros(count, dtype=bool), dict[int, Flip]()
    eager_best = reference.outputs["logits"].argmax(1).numpy()
    for rows, outputs in zip(batches, ran.outputs, strict=True):
        found = {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}
        embedding = found.pop("embedding")
        places = torch.from_numpy(rows)
        far = _norm(embedding - reference.embeddings[places]) / reference.lengths[places]
        expected = {name: value[places] for name, value in reference.outputs.items()}
        of_model = reference.differences(places, found, expected)
        with torch.inference_mode():
            of_head = reference.differences(places, found, reference.head_outputs(embedding))
        logit = _largest(found["logits"] - expected["logits"])
        chosen = found["logits"].argmax(1).numpy()
        good = (of_head <= _HEAD_TOLERANCE) & (of_model <= (np.inf if bounds.tolerance is None else bounds.tolerance))
        good &= torch.isfinite(of_model)
        for place, row in enumerate(rows.tolist()):
            distance[row] = max(distance[row], float(far[place]))
            seen[row] = max(seen[row], float(of_model[place]))
            agreed[row] &= chosen[place] == eager_best[row]
            best[row] = chosen[place]
            if far[place] > bounds.embedding_tolerance:
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
    explained = [flip for row, flip in sorted(flips.items()) if not failed[row]]
    worst = int(relative.argmax())
    agreement, accuracy, eager_accuracy = _shares(samples, agreed, best, eager_best)
    problems = _problems(bounds, int(failed.sum()), count, worst, samples.kinds[worst], relative, distance)
    problems += _disagreements(bounds, agreement, accuracy, eager_accuracy)
    return StageParity(
        passed=not problems,
        problems=tuple(problems),
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
        top1_agreement=agreement,
        accuracy=accuracy,
        eager_accuracy=eager_accuracy,
        relative=tuple(float(f"{_number(value):.3g}") for value in seen),
    )


def _shares(
    samples: Samples, agreed: NDArray[np.bool_], best: NDArray[np.int64], eager_best: NDArray[np.int64]
) -> tuple[float | None, float | None, float | None]:
    """Return the agreement on real images, and the accuracies of the artifact and of eager PyTorch."""
    is_real, known = samples.is_real, samples.labels >= 0
    agreement = float(agreed[is_real].mean()) if is_real.any() else None
    if not known.any():
        return agreement, None, None
    labels = samples.labels[known]
    return agreement, float((best[known] == labels).mean()), float((eager_best[known] == labels).mean())


def _problems(
    bounds: Precision,
    failed: int,
    count: int,
    worst: int,
    kind: str,
    relative: NDArray[np.float64],
    distance: NDArray[np.float64],
) -> list[str]:
    if not failed:
        return []
    allowed = "none" if bounds.tolerance is None else f"{bounds.tolerance:.0e}"
    return [
        f"{failed} of {count} samples differ, with no membership flip to explain it: relative difference up to "
        f"{relative[worst]:.2e} (sample {worst}, {kind}), allowed {allowed} and {_HEAD_TOLERANCE:.0e} for the head on "
        f"its own embedding; embedding up to {distance.max():.2e}, allowed {bounds.embedding_tolerance:.0e}"
    ]


def _disagreements(
    bounds: Precision, agreement: float | None, accuracy: float | None, eager_accuracy: float | None
) -> list[str]:
    problems = []
    if agreement is not None and agreement < bounds.agreement:
        problems.append(
            f"the best class is the same on {agreement:.2%} of the real images, expected {bounds.agreement:.0%}; try "
            "another precision, more images for calibration, or more for the proof"
        )
    if accuracy is not None and eager_accuracy is not None and eager_accuracy - accuracy > bounds.accuracy_drop:
        problems.append(
            f"the accuracy on the real images is {accuracy:.2%}, and {eager_accuracy:.2%} in eager float32; expected a "
            f"loss of at most {bounds.accuracy_drop:.2%}"
        )
    return problems


def _moved(values: Tensor, sides: Tensor) -> Tensor:
    """Return feature values ``[1, F]`` on the sides of 0 that are asked for, ``[n, F]``: True is above it."""
    return torch.where(sides, values.clamp_min(_TINY), values.clamp_max(0))


def _scale(values: Tensor) -> Tensor:
    return values.abs().amax(1).clamp_min(1)


def _largest(differences: Tensor) -> Tensor:
    """Return the largest magnitude in each row, infinite where there is no number."""
    return torch.nan_to_num(differences.abs(), nan=torch.inf, posinf=torch.inf).amax(1)


def _norm(differences: Tensor) -> Tensor:
    return torch.nan_to_num(torch.linalg.vector_norm(differences, dim=1), nan=torch.inf)


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _number(value: float) -> float:
    """Return a number that JSON can hold."""
    return min(float(value), _LARGEST)


_LARGEST = float(np.finfo(np.float32).max)
