"""What a proof found, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tnn_runtime.errors import TnnError

__all__ = ["LOWERED", "Flip", "ParityError", "ParityReport", "StageParity"]

LOWERED = "lowered head"
"""The first stage of every proof: the eager head against the lowered one, on embeddings."""


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
        precision: A key of `tnn_export.formats.precision.PRECISIONS`.
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
        agreement_interval: Bounds of the share with the same best class among all images like the real ones, as in
            `tnn_export.proof.agreement`; ``None`` without real images.
        loss_interval: The same of the loss of accuracy, 0 to 1; ``None`` where no class is known.
        undecided: What there are too few images to tell of, one line each.
        notes: What who runs the artifact should know, one line each.
        max_map_diff: Largest difference of a feature map from that of eager PyTorch, relative as in
            `Precision.tolerance`; ``None`` without feature maps.
        max_mean_diff: The same of a feature map, pooled, from the feature in the artifact's own embedding.
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
    agreement_interval: tuple[float, float] | None = None
    loss_interval: tuple[float, float] | None = None
    undecided: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_map_diff: float | None = None
    max_mean_diff: float | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the table cannot show, one line each."""
        if self.max_map_diff is None or self.max_mean_diff is None:
            return (*self.undecided, *self.notes)
        maps = (
            f"feature maps are those of eager PyTorch within {self.max_map_diff:.1e}, and pooled, the features "
            f"within {self.max_mean_diff:.1e}"
        )
        return (maps, *self.undecided, *self.notes)


@dataclass(frozen=True)
class ParityReport:
    """The comparison of every stage with eager PyTorch.

    Args:
        stages: ``lowered head``, and each exported format.
        unproven: Artifacts that could not be run, each with the reason.
        notes: What who uses the artifacts should know, one line each.
        scores: How scores follow from the logits, and how far they can be trusted; empty where nothing is known.
    """

    stages: Mapping[str, StageParity]
    unproven: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: str = ""

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return all(parity.passed for parity in self.stages.values())

    def summary(self) -> str:
        """Return what is wrong in one line, or that nothing is."""
        problems = [f"{name}: {problem}" for name, parity in self.stages.items() for problem in parity.problems]
        return "; ".join(problems) or f"{', '.join(self.stages)} passed"

    def table(self) -> str:
        """Return the comparison as a table, one line for each stage, and the `remarks` below it."""
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
        ) + "".join(f"\n{line}" for line in self.remarks())

    def remarks(self) -> list[str]:
        """Return what the table cannot show, one line each: what is not proven, or not decided, scores and notes."""
        return [
            *(f"{file}: NOT PROVEN, {reason}" for file, reason in self.unproven.items()),
            *(f"{name}: {line}" for name, parity in self.stages.items() for line in parity.remarks),
            *([f"scores: {self.scores}"] if self.scores else []),
            *(f"note: {line}" for line in self.notes),
        ]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the report as plain values that JSON can hold, one dictionary for each stage."""
        return {name: dataclasses.asdict(parity) for name, parity in self.stages.items()}


class ParityError(TnnError):
    """An exported artifact that does not give the outputs of eager PyTorch.

    Args:
        report: The whole comparison.
        consequence: What that means.

    Attributes:
        report: The whole comparison.
    """

    def __init__(
        self,
        report: ParityReport,
        consequence: str = "the exported model differs from eager PyTorch, so nothing was written",
    ) -> None:
        self.report = report
        super().__init__(f"{consequence}: {report.summary()}")
