from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import special

from tnn_runtime.answers.ranking import largest, logsumexp, softmax

FEW_VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, np.inf, -np.inf, np.nan])
FINITE = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("elements", [FINITE, FEW_VALUES], ids=["finite", "all"])
@given(data=st.data())
def test_it_is_the_beginning_of_a_stable_sort(elements: st.SearchStrategy[float], data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(0, 5), st.integers(1, 40)))
    values = data.draw(arrays(np.float32, shape, elements=elements))
    count = data.draw(st.integers(1, 50))
    assert np.array_equal(largest(values, count), np.argsort(-values, axis=1, kind="stable")[:, :count])
    before = values.copy()
    largest(values, count)
    assert np.array_equal(values, before, equal_nan=True)


@given(
    logits=arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-20, 20, width=32),
    )
)
def test_differences_are_taken_in_the_type_of_the_logits(logits: np.ndarray) -> None:
    for values in (logits, logits.astype(np.float64)):
        with np.errstate(over="ignore"):
            rounded = (values - values.max(axis=1, keepdims=True)).astype(np.float64)
        np.testing.assert_allclose(softmax(values), special.softmax(rounded, axis=1), rtol=1e-13, atol=1e-300)
        expected = values.max(axis=1) + special.logsumexp(rounded, axis=1)
        np.testing.assert_allclose(logsumexp(values), expected, rtol=1e-13, atol=1e-13)
        assert softmax(values[:0]).shape == (0, values.shape[1])
        assert logsumexp(values[:0]).shape == (0,)
