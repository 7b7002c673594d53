"""Whether an artifact gives the classes of eager PyTorch: what the real images of a proof say of all like them.

The real images are a sample, so that no share of them decides anything by itself. What is compared with the bounds of
a precision are the exact bounds of Clopper and Pearson (1934, Biometrika 26) for the share among all such images:

* The artifact is refused if even the more favourable one is beyond what the precision allows.
* It is shown to keep what is allowed if even the less favourable one is within it.
* Otherwise there are too few images to tell. It is not refused, and how many would tell is said.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from tnn_export.formats.precision import Precision

__all__ = ["ERROR", "Agreement", "Share", "judge_classes"]

ERROR = 0.05
"""With at most this probability a bound is on the wrong side: so often is an artifact refused that just keeps what is
allowed, and one shown to keep it that does not."""

_MOST = 1 << 40

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """On what share of all images something happens, or how much more often than its opposite, judged by a sample.

    Args:
        count: On how many images of the sample it happened.
        total: The size of the sample, at least 1.
        against: On how many its opposite happened, whose share is subtracted; ``None`` for one share alone.
    """

    count: int
    total: int
    against: int | None = None

    @property
    def bounds(self) -> Interval:
        """The lower and the upper bound, each wrong with a probability of at most `ERROR`.

        For a difference each of the two shares has half of that (Bonferroni), so that the bounds are safe whatever the
        two have to do with each other.
        """
        if self.against is None:
            return _lower(self.count, self.total, ERROR), _upper(self.count, self.total, ERROR)
        return (
            _lower(self.count, self.total, ERROR / 2) - _upper(self.against, self.total, ERROR / 2),
            _upper(self.count, self.total, ERROR / 2) - _lower(self.against, self.total, ERROR / 2),
        )

    def fewest(self, allowed: float) -> int:
        """Return in how large a sample the same counts would show that the share is at most ``allowed``, above 0."""
        low, high = max(1, self.count + (self.against or 0)), _MOST
        while low < high:
            middle = (low + high) // 2
            shows = dataclasses.replace(self, total=middle).bounds[1] <= allowed
            low, high = (low, middle) if shows else (middle + 1, high)
        return low


@dataclass(frozen=True)
class Agreement:
    """What the real images say.

    Args:
        top1: Share of them with the same best class in every batch; ``None`` if there are none.
        top1_interval: The bounds of that share among all such images.
        accuracy: Of the artifact on those whose classes are known; ``None`` if there are none.
        eager_accuracy: Of eager PyTorch on the same images.
        loss_interval: The bounds of how much less accurate the artifact is on all such images.
        problems: What is beyond what the precision allows, one line each.
        undecided: What there are too few images to tell of, one line each.
    """

    top1: float | None = None
    top1_interval: Interval | None = None
    accuracy: float | None = None
    eager_accuracy: float | None = None
    loss_interval: Interval | None = None
    problems: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


def judge_classes(
    precision: Precision, same: NDArray[np.bool_], right: NDArray[np.bool_], eager_right: NDArray[np.bool_]
) -> Agreement:
    """Judge the classes that an artifact gives to real images.

    Args:
        precision: What it was made in, with what that allows.
        same: Whether eager PyTorch has the same best class in every batch, bool ``[N]`` for the real images.
        right: Whether the artifact has the right class, bool ``[M]`` for those whose class is known.
        eager_right: Whether eager PyTorch has it, bool ``[M]``.
    """
    problems: list[str] = []
    undecided: list[str] = []

    def decide(share: Share, allowed: float, text: str) -> None:
        low, high = share.bounds
        if low > allowed:
            problems.append(f"{text}; try another precision, or more images for calibration")
        elif high > allowed:
            undecided.append(
                f"too few images to tell: {text}; {share.fewest(allowed):,} images with no more differences would tell"
            )

    top1 = top1_interval = accuracy = eager_accuracy = loss_interval = None
    if len(same):
        other = Share(int((~same).sum()), len(same))
        low, high = top1_interval = 1 - other.bounds[1], 1 - other.bounds[0]
        top1 = float(same.mean())
        decide(
            other,
            1 - precision.agreement,
            f"the best class is the same on {same.sum()} of {len(same)} real images, which stands for {low:.2%} to "
            f"{high:.2%} of all such images, expected at least {precision.agreement:.0%}",
        )
    if len(right):
        loss = Share(int((eager_right & ~right).sum()), len(right), int((right & ~eager_right).sum()))
        low, high = loss_interval = loss.bounds
        accuracy, eager_accuracy = float(right.mean()), float(eager_right.mean())
        decide(
            loss,
            precision.accuracy_drop,
            f"{right.sum()} of {len(right)} real images get the right class, and {eager_right.sum()} in eager float32, "
            f"which stands for a loss of {100 * low:.2f} to {100 * high:.2f} points on all such images, expected at "
            f"most {100 * precision.accuracy_drop:g}",
        )
    return Agreement(top1, top1_interval, accuracy, eager_accuracy, loss_interval, tuple(problems), tuple(undecided))


def _lower(count: int, total: int, error: float) -> float:
    return 0.0 if count == 0 else float(betaincinv(count, total - count + 1, error))


def _upper(count: int, total: int, error: float) -> float:
    return 1 - _lower(total - count, total, error)
