"""What the features that an explanation names are worth: the margin without them, and with nothing else.

Sources: deletion and insertion curves are those of Petsiuk et al. (2018, arXiv 1806.07421), with features in place of
pixels; what is deleted is compared with what is drawn at random as in Samek et al. (2017, arXiv 1509.06321).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tnn_train.audit.subject import Explained

__all__ = ["Curves", "Removal", "curve_steps", "named_features", "ranked_features", "remove_features"]

NAMED = 3
"""How many features count as named."""

DRAWS = 10
"""How many random choices each image is compared with."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The mean margin along the way, as a share of the mean margin with all features.

    Args:
        steps: How many features are removed, or are there, int64 ``[s]``; the first is 0 and the last is all.
        deletion: Without so many of those named first, float64 ``[s]``.
        random_deletion: Without so many random ones.
        insertion: With only so many of those named first.
        random_insertion: With only so many random ones.
    """

    steps: NDArray[np.int64]
    deletion: NDArray[np.float64]
    random_deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    random_insertion: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Removal:
    """What happens to the margin of the best class over the runner-up, of n images, in units of logits.

    Removing a feature is `tnn_runtime.Explanation.without`: neither the image nor any prototype has it.

    Args:
        margin: With all features, float64 ``[n]``.
        named: How much it drops without the named features, ``[n]``.
        random: How much it drops without as many random ones, ``[n, draws]``.
        of_logit: How much it drops without as many of the features with the largest parts of the logit, ``[n]``.
        kept: What it is with the named features alone, ``[n]``.
        curves: The same along the way.
    """

    margin: NDArray[np.float64]
    named: NDArray[np.float64]
    random: NDArray[np.float64]
    of_logit: NDArray[np.float64]
    kept: NDArray[np.float64]
    curves: Curves

    @property
    def wins(self) -> float:
        """The share of images, and of draws, where the named features drop the margin more than random ones."""
        return float((self.named[:, None] > self.random).mean())

    @property
    def wins_of_logit(self) -> float:
        """The same for the features with the largest parts of the logit."""
        return float((self.of_logit[:, None] > self.random).mean())

    @property
    def suffices(self) -> float:
        """The share of images whose best class stays ahead of the runner-up with the named features alone."""
        return float((self.kept > 0).mean())


def ranked_features(explained: Explained) -> list[int]:
    """Return all features, those first that do most for the best class rather than the runner-up."""
    effects = {lead.index: lead.value for lead in explained.contrast.features}
    return sorted((feature.index for feature in explained.best.features), key=lambda index: -effects.get(index, 0.0))


def named_features(explained: Explained, count: int = NAMED) -> list[int]:
    """Return the features that speak most for the best class rather than the runner-up, at most ``count``."""
    return [lead.index for lead in explained.contrast.features if lead.value > 0][:count]


def remove_features(
    explained: Sequence[Explained], *, count: int = NAMED, draws: int = DRAWS, seed: int = 0
) -> Removal:
    """Remove features from explained images.

    Random ones are drawn out of those whose removal changes the margin at all, as many as are named: a draw of
    features that do nothing would be no comparison.

    Args:
        explained: The images, with all features; at least one.
        count: How many features count as named, at most.
        draws: How many random choices each image is compared with.
        seed: Decides them.
    """
    random = np.random.default_rng(seed)
    steps = curve_steps(len(explained[0].best.features))
    rows, curves = [], np.zeros((4, len(steps)))
    for one in explained:
        margin, ranked, named = one.margin([]), ranked_features(one), named_features(one, count)
        effective = [lead.index for lead in one.contrast.features]
        drawn = [random.permutation(effective)[: len(named)].tolist() for _ in range(draws)]
        strongest = [feature.index for feature in one.best.features[: len(named)]]
        rows.append(
            (
                margin,
                margin - one.margin(named),
                [margin - one.margin(some) for some in drawn],
                margin - one.margin(strongest),
                one.margin(ranked[len(named) :]),
            )
        )
        shuffled = random.permutation(ranked).tolist()
        for place, order in enumerate((ranked, shuffled)):
            curves[place] += [one.margin(order[:step]) for step in steps]
            curves[2 + place] += [one.margin(order[step:]) for step in steps]
    margins, dropped, by_random, by_strongest, kept = (np.array(column) for column in zip(*rows, strict=True))
    found = Curves(np.array(steps), *(curves / (margins.sum() or 1.0)))
    return Removal(margins, dropped, by_random, by_strongest, kept, found)


def curve_steps(count: int) -> list[int]:
    """Return the numbers of features to remove along a curve: 0, 1, 2, 3, 5, 8, ... and ``count``."""
    steps = [0, 1]
    while (following := steps[-1] + max(steps[-2], 1)) < count:
        steps.append(following)
    return [*(step for step in steps if step < count), count]
