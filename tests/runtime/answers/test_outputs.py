"""Which rows of the outputs hold values that are no finite numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tnn_runtime.answers.outputs import Outputs


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, 0.0])
@pytest.mark.parametrize("shape", [(1, 3), (600, 10), (2, 4, 5, 5)])
def test_finite_numbers_are_good_whatever_their_size(value: float, shape: tuple[int, ...]) -> None:
    full = np.full(shape, value, np.float32)
    with warnings.catch_warnings(action="error"):
        assert Outputs(full.reshape(len(full), -1), full).bad_rows.tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2000), (4, 3, 2, 2)])
def test_bad_rows_are_those_of_any_output(value: float, shape: tuple[int, ...]) -> None:
    logits, embedding = np.full((4, 2), 3e38, np.float32), np.full(shape, -3e38, np.float32)
    distances = np.zeros((4, 5), np.float32)
    logits[3, 1] = embedding[1].flat[-1] = distances[2, 0] = value
    with warnings.catch_warnings(action="error"):
        assert Outputs(logits, embedding).bad_rows.tolist() == [1, 3]
        assert Outputs(logits, embedding, {"distances": distances}).bad_rows.tolist() == [1, 2, 3]
