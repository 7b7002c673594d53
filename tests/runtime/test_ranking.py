from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tnn_runtime.answers.ranking import largest

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
