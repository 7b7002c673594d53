"""Similarity matching by its definition, in float64: where its circuit settles is a minimum, which SciPy finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from covering import Row, covering_array
from numpy.typing import NDArray
from scipy.optimize import nnls

from tnn_train.heads.matching.config import MatchingConfig
from tnn_train.heads.matching.head import MatchingHead

Values = NDArray[np.float64]

CHOICES: dict[str, Sequence[object]] = {
    "units": (3, 5),
    "activation": ("non-negative", "linear"),
    "step": (None, 0.1),
    "leak": (0.1, 0.7),
    "regularization": ("weight", "whiten", "none"),
    "supervision": (0.0, 0.8),
    "end_to_end": (True, False),
    "objective": (0.01, 1.0),
    "tau": (0.5, 2.0),
}

EXACT = {"tolerance": 1e-6, "iterations": 10_000}
"""A circuit that is settled but for rounding."""


def forms(strength: int = 2, **only: object) -> list[MatchingConfig]:
    """Return forms with every combination of the values of any ``strength`` options, all of them settled exactly."""
    choices = {**CHOICES, **{name: (value,) for name, value in only.items()}}
    rows: list[Row] = covering_array(choices, strength)
    return [MatchingConfig(**{**EXACT, **row}) for row in rows]  # type: ignore[arg-type]


def name(config: MatchingConfig) -> str:
    """Return a short name of a form."""
    return "-".join(str(getattr(config, option)) for option in CHOICES)


def array(tensor: object) -> Values:
    return np.asarray(tensor.detach().double().cpu().numpy())  # type: ignore[attr-defined]


def lateral(head: MatchingHead) -> Values:
    """Return M with the leak."""
    weights = array(head.lateral)
    return (weights + weights.T) / 2 + head.config.leak * np.eye(len(weights))


def inputs(head: MatchingHead, x: Values) -> Values:
    """Return embeddings whose mean squared norm is the number of units."""
    spread = float(head.scaling.spread)
    return (x - array(head.scaling.center)) * np.sqrt(head.config.units / spread)


def minimum(lateral: Values, drive: Values, is_rectified: bool) -> Values:
    """Return the minimum of ``y M y / 2 - b y`` for each drive ``b [N, K]``, over ``y >= 0`` if it is rectified.

    With ``M = L L'`` it is half of ``|L' y - L^-1 b|^2``, but for a constant.
    """
    if not is_rectified:
        return np.linalg.solve(lateral, drive.T).T
    root = np.linalg.cholesky(lateral)
    return np.stack([nnls(root.T, np.linalg.solve(root, b))[0] for b in drive])


def iterated(lateral: Values, drive: Values, step: float, count: int, is_rectified: bool) -> Values:
    """Return where the circuit is after so many iterations, unit by unit."""
    y = np.zeros_like(drive)
    for _ in range(count):
        moved = np.zeros_like(y)
        for k in range(len(lateral)):
            moved[:, k] = y[:, k] + step * (drive[:, k] - sum(lateral[k, j] * y[:, j] for j in range(len(lateral))))
        y = np.maximum(moved, 0) if is_rectified else moved
    return y


def activities(head: MatchingHead, x: Values, labels: Values | None = None) -> Values:
    """Return where the units settle, in training with the similarities of labels: shares of classes ``[N, C]``."""
    drive = inputs(head, x) @ array(head.encoder).T
    if labels is not None and head.label_encoder is not None:
        drive = drive + label_inputs(head, labels) @ array(head.label_encoder).T
    return minimum(lateral(head), drive, head.config.is_rectified)


def label_inputs(head: MatchingHead, labels: Values) -> Values:
    return np.sqrt(head.config.supervision * head.config.units) * (labels - 1 / head.num_classes)


def logits(head: MatchingHead, x: Values) -> Values:
    return activities(head, x) @ array(head.classifier.weight).T + array(head.classifier.bias)


def rules(head: MatchingHead, x: Values, labels: Values, weights: Values) -> dict[str, Values]:
    """Return minus the changes that the learning rules make to the weights, for a learning rate of 1.

    Hebbian: ``W <- W + 2 (E[y x'] - W)``; anti-Hebbian: ``M <- M + (E[y y'] - M)``.

    Args:
        head: The head.
        x: Embeddings ``[N, D]``.
        labels: Shares of classes, ``[N, C]``.
        weights: How much each image counts, ``[N]``.
    """
    y = activities(head, x, labels)
    found = {"lateral": array(head.lateral) - np.einsum("n,nk,nj->kj", weights, y, y)}
    encoders = {"encoder": inputs(head, x)}
    if head.label_encoder is not None:
        encoders["label_encoder"] = label_inputs(head, labels)
    for name, z in encoders.items():
        weight = array(getattr(head, name))
        kept = {
            "weight": weight,
            "whiten": weight @ np.einsum("n,ni,nj->ij", weights, z, z),
            "none": np.zeros_like(weight),
        }[head.config.regularization]
        found[name] = 2 * (kept - np.einsum("n,nk,nd->kd", weights, y, z))
    return {name: head.config.objective * values for name, values in found.items()}
