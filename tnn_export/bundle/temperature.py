"""The temperature that makes scores mean what they say, and what it does to held-out images.

A score is ``softmax(logits / temperature)`` (Guo et al. 2017, arXiv 1706.04599, section 4.2). The best class stays the
best one; how sure a model claims to be moves to how often it is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.calibration import Calibration
from tnn_runtime.answers.ranking import logsumexp, softmax

__all__ = ["FEWEST", "Scaling", "Trust", "find_temperature"]

FEWEST = 100
"""So many held-out images of known class a temperature is fitted on at least."""

_RANGE = (0.05, 20.0)
_AT_THE_END = 1.01
_FOLDS = 5


@dataclass(frozen=True)
class Trust:
    """How far scores can be trusted on some images.

    Args:
        ece: The expected calibration error over 15 bins, `Calibration.ece`.
        nll: The negative log likelihood of the right classes, the mean in nats.
    """

    ece: float
    nll: float

    @classmethod
    def of(cls, logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Trust:
        """Look at the scores of logits ``[n, C]`` that are divided already, of images of the classes ``[n]``."""
        confidence = softmax(logits).max(axis=1)
        return cls(
            Calibration.of(confidence, logits.argmax(axis=1) == labels).ece, float(_losses(logits, labels).mean())
        )


@dataclass(frozen=True)
class Scaling:
    """What scores are made with, and what that does.

    Args:
        temperature: What logits are divided by; ``None`` where they stay as they are.
        images: How many held-out images of known class there were.
        before: Of scores without a temperature; ``None`` without such images.
        after: Of scores with it. Where it was fitted on these images, each fifth of them has the temperature that was
            fitted on the other four. ``None`` without a temperature or without such images.
        why: Where the temperature comes from, or why there is none, in a few words.
    """

    temperature: float | None
    images: int
    before: Trust | None
    after: Trust | None
    why: str

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured, for the metrics of a manifest."""
        found = {"before": self.before, "after": self.after}
        measured = {
            f"held_out_{name}_{when}": getattr(trust, name)
            for when, trust in found.items()
            if trust is not None
            for name in ("ece", "nll")
        }
        return {"held_out_images": self.images, **measured} if measured else {}

    def __str__(self) -> str:
        """Say it in one line."""
        if self.temperature is None:
            return f"softmax(logits), without a temperature: {self.why}{self._measured}"
        return f"softmax(logits / {self.temperature:.4g}), {self.why}{self._measured}"

    @property
    def _measured(self) -> str:
        if self.before is None:
            return ""
        if self.after is None:
            return f"; expected calibration error {self.before.ece:.4f}, negative log likelihood {self.before.nll:.4f}"
        return (
            f"; expected calibration error {self.before.ece:.4f} before and {self.after.ece:.4f} after, negative log "
            f"likelihood {self.before.nll:.4f} and {self.after.nll:.4f}"
        )


def find_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64], given: float | None = None) -> Scaling:
    """Find the temperature with the least negative log likelihood on held-out images.

    It is kept if it also lowers that of images that it was not fitted on, by more than a standard error: each fifth
    of them is scored with the temperature that was fitted on the other four. The measures after it are of these scores,
    too.

    Args:
        logits: Of held-out images, ``[n, C]``.
        labels: Their classes, ``[n]``, -1 where they are not known.
        given: A temperature to measure in place of fitting one.
    """
    known = labels >= 0
    wide, right = logits[known].astype(np.float64), labels[known]
    count = len(right)
    before = Trust.of(wide, right) if count else None
    if given is not None:
        return Scaling(given, count, before, Trust.of(wide / given, right) if count else None, "as it was given")
    if count < FEWEST:
        return Scaling(None, count, before, None, _too_few(count, len(labels)))
    temperature = _fit(wide, right)
    if temperature is None:
        return Scaling(None, count, before, None, _none_is_best(wide, right))
    held_out, fold = np.empty_like(wide), np.random.default_rng(0).permutation(count) % _FOLDS
    for one in range(_FOLDS):
        # A fit at the end of the range is taken as it is here: what it is worth shows on the images left out.
        held_out[fold == one] = wide[fold == one] / _least(wide[fold != one], right[fold != one])
    gains = _losses(wide, right) - _losses(held_out, right)
    if gains.mean() <= gains.std(ddof=1) / math.sqrt(count):
        why = f"{temperature:.4g} fits {count} held-out images best, and is not surely better on others"
        return Scaling(None, count, before, None, why)
    why = f"fitted on {count} held-out images and measured by cross-validation"
    return Scaling(temperature, count, before, Trust.of(held_out, right), why)


def _too_few(known: int, images: int) -> str:
    there = f"{known} held-out images of known class" if known else f"the classes of {images} images are not known"
    return f"{there if images else 'there are no held-out images'}; a temperature needs {FEWEST} of known class"


def _none_is_best(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
    if (logits.argmax(axis=1) == labels).all():
        return f"all {len(labels)} held-out images get the right class, so that the smaller a temperature, the better"
    low, high = _RANGE
    return f"no temperature from {low:g} to {high:g} is best for {len(labels)} held-out images"


def _losses(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log likelihood of the right class of each image, ``[n]``."""
    return np.asarray(logsumexp(logits) - logits[np.arange(len(labels)), labels])


def _fit(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """Return the best temperature; ``None`` where none is best within the range, as where every answer is right."""
    low, high = _RANGE
    found = _least(logits, labels)
    return found if low * _AT_THE_END < found < high / _AT_THE_END else None


def _least(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature of the range with the least negative log likelihood, which is convex in its inverse."""
    from scipy.optimize import minimize_scalar

    bounds = tuple(map(math.log, _RANGE))
    found = minimize_scalar(
        lambda x: _losses(logits / math.exp(x), labels).mean(),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))
