"""The circuit against the minimum that it settles at, and what it says where it does not settle."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from oracles import matching as oracle

from tnn_train.errors import TrainingError
from tnn_train.heads.matching.circuit import Circuit, keep_positive

UNITS = 5


def positive(seed: int, least: float = 0.3) -> torch.Tensor:
    torch.manual_seed(seed)
    root = torch.randn(UNITS, UNITS, dtype=torch.float64)
    return root @ root.T / UNITS + least * torch.eye(UNITS, dtype=torch.float64)


def circuit(lateral: torch.Tensor, is_rectified: bool = True, step: float | None = None, **options: float) -> Circuit:
    return Circuit(lateral, is_rectified, step, **{"iterations": 10_000, "tolerance": 1e-12, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("is_rectified", [False, True])
@pytest.mark.parametrize("share", [None, 0.1, 0.99])
@pytest.mark.parametrize("seed", range(4))
def test_it_settles_at_the_minimum(seed: int, share: float | None, is_rectified: bool) -> None:
    lateral = positive(seed)
    limit = 2 / float(torch.linalg.eigvalsh(lateral)[-1])
    one = circuit(lateral, is_rectified, None if share is None else share * limit)
    assert 0 < one.pace < limit
    drive = torch.randn(7, UNITS, dtype=torch.float64)
    values, iterations, left = one(drive)
    assert left <= 1e-12
    expected = oracle.minimum(lateral.numpy(), drive.numpy(), is_rectified)
    assert (expected == 0).any() == is_rectified
    np.testing.assert_allclose(values, expected, atol=1e-10)
    steps = oracle.iterated(lateral.numpy(), drive.numpy(), one.pace, min(iterations, 20), is_rectified)
    np.testing.assert_allclose(one.run(drive, min(iterations, 20)), steps, atol=1e-12)


@pytest.mark.parametrize("is_rectified", [False, True])
def test_its_gradients_are_those_of_the_minimum(is_rectified: bool) -> None:
    root = positive(1).requires_grad_()
    drive = torch.randn(4, UNITS, dtype=torch.float64, requires_grad=True)

    def settled(root: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        return circuit((root + root.T) / 2, is_rectified)(drive).values

    assert torch.autograd.gradcheck(settled, (root, drive), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_rectified", [False, True])
def test_the_step_that_it_asks_for_holds(is_rectified: bool) -> None:
    lateral, drive = positive(2), torch.randn(3, UNITS, dtype=torch.float64)
    largest = float(torch.linalg.eigvalsh(lateral)[-1])
    with pytest.raises(TrainingError, match="diverges with the step .* a step below") as error:
        circuit(lateral, is_rectified, 2.5 / largest)(drive)
    below, tried = (
        float(found) for found in re.findall(r"step below ([\d.]+) holds: try ([\d.]+)", str(error.value))[0]
    )
    assert below == pytest.approx(2 / largest, rel=1e-2)
    for step in (0.99 * below, tried):
        circuit(lateral, is_rectified, step)(drive)
    assert "\n" not in str(error.value)


def test_it_says_how_far_it_got() -> None:
    lateral, drive = positive(3, 0.01), torch.randn(3, UNITS, dtype=torch.float64)
    with pytest.raises(
        TrainingError, match=r"after 4 iterations a unit is still driven by 0\.\d+ of the strongest"
    ) as error:
        circuit(lateral, iterations=4, tolerance=1e-6)(drive)
    (more,) = re.findall(r"try about (\d+) iterations", str(error.value))
    circuit(lateral, iterations=100 * int(more), tolerance=1e-6)(drive)


def test_lateral_weights_that_are_not_positive_definite_are_told() -> None:
    lateral = positive(4) - 2 * torch.eye(UNITS)
    with pytest.raises(TrainingError, match="no longer positive definite, their smallest eigenvalue is -1"):
        circuit(lateral)(torch.ones(1, UNITS, dtype=torch.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_has_another_cause(value: float) -> None:
    drive = torch.randn(3, UNITS, dtype=torch.float64)
    drive[1, 2] = value
    assert not circuit(positive(5))(drive).values.isfinite().all()
    circuit(positive(5) * value)(torch.ones(1, UNITS, dtype=torch.float64))


def test_nothing_settles_at_once() -> None:
    for drive in (torch.zeros(3, UNITS, dtype=torch.float64), torch.zeros(0, UNITS, dtype=torch.float64)):
        values, iterations, left = circuit(positive(6))(drive)
        assert (iterations, left) == (0, 0)
        assert torch.equal(values, drive)


def test_lateral_weights_are_kept_positive() -> None:
    lateral = positive(7)
    before = lateral.clone()
    keep_positive(lateral, 0.1)
    assert torch.equal(lateral, before)
    lateral -= torch.eye(UNITS)
    values, vectors = np.linalg.eigh(lateral.numpy())
    assert values[0] < -0.1
    keep_positive(lateral, 0.1)
    np.testing.assert_allclose(lateral, (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12)
    broken = torch.full((2, 2), float("nan"))
    keep_positive(broken, 0.1)
    assert broken.isnan().all()
