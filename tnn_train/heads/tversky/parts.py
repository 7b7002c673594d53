"""The parts of a Tversky logit over a sample: how large they are, and what they tell the classes apart by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_train.heads.precision import precise
from tnn_train.heads.tversky import similarity
from tnn_train.heads.tversky.layer import TverskyMeasure
from tnn_train.heads.tversky.projection import TverskyProjection
from tnn_train.heads.tversky.similarity import Pairs, Parts

__all__ = ["WEIGHTS", "PartSize", "class_parts", "feature_parts", "measure_parts", "used_parts"]

WEIGHTS = {"common": "theta", "input_only": "alpha", "prototype_only": "beta"}
"""The scalar that each part is weighted by; in the ratio model, common has no weight."""


@dataclass(frozen=True)
class PartSize:
    """A part ``p [N, C]`` of the logits of N images and C classes.

    Args:
        size: ``mean(|p|)``. Its unit, and that of the spread, is that of the logits; in the ratio model without a
            linear map, that of the denominator.
        spread: ``sqrt(mean((p - q)^2))`` with ``q [N, 1]`` the mean of ``p`` over the classes: how far it sets classes
            apart. What is the same for all classes decides nothing.
        share: ``spread^2 / mean(p^2)``: which share of its mean square differs between the classes, 0 to 1. 0 if the
            part is 0 everywhere.
    """

    size: float
    spread: float
    share: float


def feature_parts(measure: TverskyMeasure, a: Tensor, b: Tensor) -> Parts:
    """Return the terms of each feature, ``[F, N, P]``, of feature values ``a [N, F]`` and ``b [P, F]``.

    Each feature is measured as if it were the only one, so their sums over F are ``measure.parts(a, b)``.
    """
    weight = measure.feature_weight
    pairs = Pairs(
        measure.features(a.mT.unsqueeze(-1)),
        measure.features(b.mT.unsqueeze(-1)),
        None if weight is None else weight.view(-1, 1, 1),
    )
    config = measure.config
    return similarity.measure(pairs, config.model, config.intersection, config.difference)


def used_parts(head: TverskyProjection) -> tuple[str, ...]:
    """Return the names of the parts that the form of the head uses: a weight that is fixed at 0 leaves one out."""
    return tuple(
        name
        for name, weight in WEIGHTS.items()
        if (name == "common" and head.config.model == "ratio")
        or weight not in head.config.fixed
        or getattr(head, weight).item() != 0
    )


def class_parts(head: TverskyProjection, evidence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the three parts ``[N, C]`` of the logits, as `tnn_runtime.explain.tversky.TverskyExplanation` has them.

    Where a linear map follows the prototypes, a part of a class is a sum over the prototypes, weighted by the map. In
    the ratio model these are then shares of each prototype's denominator.

    Args:
        head: The head.
        evidence: What ``head.evidence`` returns of the images.
    """
    parts = {name: evidence[name] for name in WEIGHTS}
    if head.linear is None:
        return parts
    if head.config.model == "ratio":
        denominator = sum(parts.values(), head.theta)
        parts = {name: part / denominator for name, part in parts.items()}
    weight = precise(head.linear.weight) * head.logit_scale
    return {name: part @ weight.mT for name, part in parts.items()}


def measure_parts(head: TverskyProjection, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, PartSize]:
    """Return the sizes of the parts that the form uses, by name, summed up over batches in float64.

    Args:
        head: The head.
        batches: What ``head.evidence`` returns of some images at a time; at least one.
    """
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in used_parts(head)}
    for evidence in batches:
        parts = class_parts(head, evidence)
        for name, total in sums.items():
            p = parts[name].double()
            differing = (p - p.mean(1, keepdim=True)).square().sum()
            total += torch.stack([p.abs().sum(), p.new_tensor(p.numel()), differing, p.square().sum()]).cpu()
    return {
        name: PartSize(size / count, math.sqrt(differing / count), differing / square if square else 0.0)
        for name, total in sums.items()
        for size, count, differing, square in [total.tolist()]
    }
