"""The circuit of similarity matching: units that an encoder drives, and that inhibit each other until they settle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_train.errors import TrainingError

__all__ = ["Circuit", "Settled", "keep_positive"]

_SHARE = 1.5
"""The step that is chosen, times a bound of the largest eigenvalue: 2 is where the circuit begins to diverge."""


class Settled(NamedTuple):
    """Where a circuit has come to.

    Args:
        values: The activities of the units, ``[N, K]``.
        iterations: The steps that it made.
        left: The strongest drive that is left, as a share of the strongest one from outside.
    """

    values: Tensor
    iterations: int
    left: float


@dataclass(frozen=True, eq=False)
class Circuit:
    """Units that settle where their drive is balanced.

    From ``y = 0`` each iteration is ``y <- y + step (b - M y)``, and ``y <- max(y, 0)`` after it if the circuit is
    non-negative (Pehlevan, Sengupta & Chklovskii 2018, arXiv 1703.07914, with ``b = W x``). With a positive definite M
    and a step below 2 divided by its largest eigenvalue it settles at the minimum of ``y M y / 2 - b y``, over all
    ``y`` or over those that are not negative.

    Args:
        lateral: M, symmetric, ``[K, K]``.
        is_rectified: Whether it is non-negative.
        step: The size of a step; ``None`` for one that always holds.
        iterations: How many, at most.
        tolerance: It has settled when no unit is driven by more than this share of the strongest drive from outside.
    """

    lateral: Tensor
    is_rectified: bool
    step: float | None
    iterations: int
    tolerance: float

    @property
    def pace(self) -> float:
        """The size of a step."""
        if self.step is not None:
            return self.step
        # Both norms are bounds of the largest eigenvalue.
        lateral = self.lateral.detach()
        rows, whole = lateral.abs().sum(1).max(), torch.linalg.matrix_norm(lateral)
        return _SHARE / float(torch.minimum(rows, whole))

    def __call__(self, drive: Tensor) -> Settled:
        """Return where a drive ``b [N, K]`` leads to, with gradients of drive and M.

        Raises:
            TrainingError: If it does not settle.
        """
        with torch.no_grad():
            settled = self.settle(drive)
        values: Tensor = _Implicit.apply(drive, self.lateral, settled.values, self)
        return settled._replace(values=values)

    def settle(self, drive: Tensor) -> Settled:
        """Run until the circuit has settled.

        Raises:
            TrainingError: If it does not, with the reason and with what would hold. Where a value is no finite number,
                the cause is another one, and nothing is raised.
        """
        settled = self.approach(drive)
        if drive.isfinite().all() and self.lateral.isfinite().all():
            identity = torch.eye(len(self.lateral)).to(self.lateral)
            holds = _is_positive(self.lateral) and _is_positive(2 / self.pace * identity - self.lateral)
            if not holds or settled.left > self.tolerance:
                why = self._why(settled)
                raise TrainingError(
                    f"the circuit of the matching head does not settle: {why}; earlier checkpoints are kept"
                )
        return settled

    def approach(self, drive: Tensor, mask: Tensor | None = None) -> Settled:
        """Run until the circuit has settled, or all iterations are made.

        Args:
            drive: ``[N, K]``.
            mask: Which units take part, ``[N, K]``, in place of the ReLU; ``None`` for all.
        """
        pace, strongest = self.pace, float(drive.abs().max()) if len(drive) else 0.0
        values, done, left = torch.zeros_like(drive), 0, math.inf if strongest else 0.0
        while left > self.tolerance and done < self.iterations:
            moved = self.moved(values, drive, pace) if mask is None else mask * self._pushed(values, drive, pace)
            left = float((moved - values).abs().max() / (pace * strongest))
            values, done = moved, done + 1
        return Settled(values, done, left)

    def run(self, drive: Tensor, iterations: int) -> Tensor:
        """Return the activities ``[N, K]`` after so many iterations."""
        pace, values = self.pace, torch.zeros_like(drive)
        for _ in range(iterations):
            values = self.moved(values, drive, pace)
        return values

    def moved(self, values: Tensor, drive: Tensor, pace: float) -> Tensor:
        """Return the activities after one more iteration."""
        values = self._pushed(values, drive, pace)
        return values.relu() if self.is_rectified else values

    def _pushed(self, values: Tensor, drive: Tensor, pace: float) -> Tensor:
        return values + pace * (drive - values @ self.lateral)

    def _why(self, settled: Settled) -> str:
        smallest, largest = _extremes(self.lateral)
        if smallest <= 0:
            return (
                f"its lateral weights are no longer positive definite, their smallest eigenvalue is {smallest:.3g}; "
                "try a lower learning rate, or a larger leak (--matching.leak)"
            )
        pace = self.pace
        if pace * largest >= 2:
            return (
                f"it diverges with the step {pace:.3g}, since the largest eigenvalue of its lateral weights is "
                f"{largest:.3g}; a step below {2 / largest:.3g} holds: try {1 / largest:.2g} (--matching.step), or "
                "leave the step out"
            )
        more = math.ceil(settled.iterations * math.log(self.tolerance) / math.log(min(settled.left, 0.99)))
        return (
            f"after {settled.iterations} iterations a unit is still driven by {settled.left:.2g} of the strongest "
            f"drive, and the tolerance is {self.tolerance:g}; try about {2 * more} iterations (--matching.iterations), "
            "a larger tolerance (--matching.tolerance), or a larger leak (--matching.leak)"
        )


@torch.no_grad()
def keep_positive(lateral: Tensor, slack: float) -> None:
    """Bring lateral weights ``[K, K]`` back to the nearest matrix without negative eigenvalues, if one is below -slack.

    The objective is a maximum over such matrices, and an optimizer such as Adam steps out of them: its steps have one
    size for all weights, however small these have become.
    """
    symmetric = (lateral + lateral.T) / 2
    is_near = _is_positive(symmetric + slack * torch.eye(len(lateral)).to(lateral))
    if not is_near and bool(symmetric.isfinite().all()):
        values, vectors = torch.linalg.eigh(symmetric)
        lateral.copy_((vectors * values.clamp_min(0)) @ vectors.T)


def _is_positive(matrix: Tensor) -> bool:
    """Return whether a symmetric matrix is positive definite."""
    return not bool(torch.linalg.cholesky_ex(matrix).info)


def _extremes(lateral: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a symmetric matrix."""
    values = torch.linalg.eigvalsh(lateral.detach().double())
    return float(values[0]), float(values[-1])


class _Implicit(torch.autograd.Function):
    """The settled activities with their gradients, which follow from the balance itself, not from the way to it.

    Among the units that are active ``M y = b`` holds, so that ``dy = M^-1 (db - dM y)`` there: the gradient settles in
    the circuit of these units.
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, lateral: Tensor, values: Tensor, circuit: Circuit) -> Tensor:
        ctx.save_for_backward(values)
        ctx.circuit = circuit
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (values,) = ctx.saved_tensors
        circuit: Circuit = ctx.circuit
        active = (values > 0).to(values) if circuit.is_rectified else torch.ones_like(values)
        with torch.no_grad():
            found = circuit.approach(active * gradient, active).values
        return found, -found.T @ values, None, None
