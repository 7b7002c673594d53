"""Logic gate networks in float64 NumPy, gate by gate as the papers define them: slow, and obviously right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tnn_train import LogicHead

Values = NDArray[np.float64]

RELAXED: list[Callable[[float, float], float]] = [
    lambda a, b: 0,
    lambda a, b: 1 - (a + b - a * b),
    lambda a, b: b - a * b,
    lambda a, b: 1 - a,
    lambda a, b: a - a * b,
    lambda a, b: 1 - b,
    lambda a, b: a + b - 2 * a * b,
    lambda a, b: 1 - a * b,
    lambda a, b: a * b,
    lambda a, b: 1 - (a + b - 2 * a * b),
    lambda a, b: b,
    lambda a, b: 1 - a + a * b,
    lambda a, b: a,
    lambda a, b: 1 - b + a * b,
    lambda a, b: a + b - a * b,
    lambda a, b: 1,
]
"""The 16 functions of two inputs in real-valued logic (arXiv 2210.08277, table 1), in the order of their truth tables:
bit ``2a + b`` of the number is the value at ``a, b``."""


def _of_gate(scores: Values, a: float, b: float, *, is_relaxed: bool) -> float:
    """Return what a gate gives: a mixture of 16 functions, or a logistic function of a Walsh series."""
    if len(scores) == 16:
        if not is_relaxed:
            return RELAXED[int(scores.argmax())](a, b)
        shares = np.exp(scores - scores.max())
        return float(sum(share * f(a, b) for share, f in zip(shares / shares.sum(), RELAXED, strict=True)))
    logit = float(scores @ [1, 2 * a - 1, 2 * b - 1, (2 * a - 1) * (2 * b - 1)])
    return float(1 / (1 + np.exp(-logit))) if is_relaxed else float(logit > 0)


def logits(head: LogicHead, x: NDArray[np.floating], *, is_relaxed: bool = False) -> Values:
    """Return the logits ``[N, C]`` of embeddings ``[N, D]``, of the relaxed or the discrete network."""
    thresholds = head.thresholds.values.detach().double().numpy()
    found = []
    for row in np.asarray(x, np.float64):
        h = [float(value > t) for value, own in zip(row, thresholds, strict=True) for t in own]
        for layer in head.layers:
            scores = layer.scores.detach().double().numpy().T
            wires = zip(scores, layer.left.tolist(), layer.right.tolist(), strict=True)
            h = [_of_gate(score, h[a], h[b], is_relaxed=is_relaxed) for score, a, b in wires]
        found.append(np.array(h).reshape(head.num_classes, -1).sum(1) / head.temperature)
    return np.array(found)


def votes(arrays: dict[str, NDArray[np.generic]], bits: NDArray[np.bool_], classes: int) -> NDArray[np.int64]:
    """Return how many gates of each class are on, ``[N, C]``, by looking every gate up in its truth table."""
    h = bits.astype(np.int64)
    for left, right, tables in zip(
        *(arrays[name].astype(np.int64) for name in ("left", "right", "tables")), strict=True
    ):
        h = tables >> 2 * h[:, left] + h[:, right] & 1
    return h.reshape(len(bits), classes, -1).sum(2)
