"""What does no work in a Tversky head: prototypes and features that coincide, and features that tell nothing apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from tnn_train.heads.tversky.layer import TverskyMeasure

__all__ = ["Duplicate", "IdleFeatures", "duplicate_features", "duplicates", "idle_features"]


@dataclass(frozen=True)
class Duplicate:
    """Two prototypes, or two features, that nearly coincide.

    Args:
        first: Index of one.
        second: Index of the other, a larger one.
        cosine: Of the prototypes' saliences, or of what `duplicate_features` compares.
    """

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class IdleFeatures:
    """Features that tell no images or no prototypes apart by their presence.

    A feature that is everywhere has an opposite that is nowhere, which is not listed beside it.

    Args:
        in_no_image: Features that no image of the sample has.
        in_no_prototype: Features that no prototype has.
        everywhere: Features that every image and every prototype has.
    """

    in_no_image: tuple[int, ...]
    in_no_prototype: tuple[int, ...]
    everywhere: tuple[int, ...]


def duplicates(rows: Tensor, threshold: float) -> tuple[Duplicate, ...]:
    """Return the pairs of rows ``[n, d]`` with a cosine of at least ``threshold``, the most alike first."""
    return _pairs(_cosines(rows), threshold)


def duplicate_features(measure: TverskyMeasure, length: float, threshold: float) -> tuple[Duplicate, ...]:
    """Return the pairs of features of a learned bank that nearly coincide, the most alike first.

    Compared are the rows ``omega_k`` of the bank, and with thresholds ``(length omega_k, tau_k)``: two features that
    differ in their thresholds alone are two. Where features have opposites, a row that is nearly minus another one
    makes a feature coincide with the other's opposite. Of two pairs that say the same of opposites, one is returned.

    Args:
        measure: The layer; one with a diagonal bank has no such features.
        length: How long embeddings are.
        threshold: The cosine from which on two coincide.
    """
    if measure.feature_bank is None:
        return ()
    rows = length * measure.feature_bank.detach()
    if measure.thresholds is not None:
        rows = torch.cat([rows, measure.thresholds.detach().unsqueeze(1)], 1)
    cosines = _cosines(rows)
    found = _pairs(cosines, threshold)
    if measure.config.opposites:
        opposite = _pairs(-cosines, threshold)
        found += tuple(Duplicate(pair.first, len(rows) + pair.second, pair.cosine) for pair in opposite)
    return tuple(sorted(found, key=lambda pair: -pair.cosine))


def idle_features(measure: TverskyMeasure, a: Tensor, b: Tensor) -> IdleFeatures:
    """Return the features that tell nothing apart by their presence, of values ``a [N, F]`` and ``b [P, F]``."""
    in_images, in_prototypes = a > 0, b > 0
    everywhere = in_images.all(0) & in_prototypes.all(0)
    listed = everywhere.roll(len(everywhere) // 2) if measure.config.opposites else torch.zeros_like(everywhere)
    return IdleFeatures(
        _where(~in_images.any(0) & ~listed), _where(~in_prototypes.any(0) & ~listed), _where(everywhere)
    )


def _cosines(rows: Tensor) -> NDArray[np.float64]:
    return np.asarray(cosine_similarity(rows.detach().double().cpu().numpy()))


def _pairs(cosines: NDArray[np.float64], threshold: float) -> tuple[Duplicate, ...]:
    pairs = np.argwhere(np.triu(cosines >= threshold, 1)).tolist()
    found = [Duplicate(first, second, float(cosines[first, second])) for first, second in pairs]
    return tuple(sorted(found, key=lambda pair: -pair.cosine))


def _where(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
