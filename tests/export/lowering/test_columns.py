from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from forms import seeds, to_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tnn_export import lower_head
from tnn_export.lowering.tversky import columns
from tnn_export.lowering.tversky.columns import affine_map
from tnn_train import TverskyConfig, TverskyHead


@given(seed=seeds, rows=st.integers(1, 5), dense=st.integers(0, 3), own=st.lists(st.integers(0, 4), max_size=8))
@settings(max_examples=200)
def test_the_map_is_the_same_whichever_rows_have_columns_of_their_own(
    seed: int, rows: int, dense: int, own: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-9, 9, shape, generator=generator).double()

    weight = torch.cat([draw(rows, dense), draw(1, len(own)).expand(rows, -1).clone(), draw(rows, 1)], 1)
    for column, row in enumerate(own):
        weight[row % rows, dense + column] += 1 + column
    weight = weight[:, torch.randperm(weight.shape[1], generator=generator)]
    bias, x = draw(rows), draw(2, 3, weight.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "FEWEST_SAVED", 1)
        lowered = affine_map(weight, bias)
    torch.testing.assert_close(lowered(x.float()), (x @ weight.mT + bias).float())


@pytest.fixture(scope="module")
def many_classes() -> TverskyHead:
    """A head of 600 classes, unfolded from a linear layer, then moved a little, as training does."""
    torch.manual_seed(0)
    head = TverskyHead.from_linear(nn.Linear(5, 600), TverskyConfig())
    with torch.no_grad():
        head.prototypes.add_(torch.randn_like(head.prototypes) * 0.1)
    return head


def test_an_attribute_of_one_class_is_not_read_for_all_others(many_classes: TverskyHead, tmp_path: Path) -> None:
    classes, attributes = 600, many_classes.num_features // 2
    lowered, x = lower_head(many_classes), torch.randn(5, 5)
    expected = many_classes(x).detach()
    graph = onnx.load(to_onnx(lowered, tmp_path / "head.onnx")).graph
    values = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert values < attributes * 5 + classes * (2 * attributes - classes) + 10_000
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.freeze(torch.jit.script(lowered.eval()))
    for found in (lowered(x), torch.tensor(session.run(None, {"x": x.numpy()})[0]), scripted(x)):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def test_a_small_head_is_one_product() -> None:
    head = TverskyHead.from_linear(nn.Linear(32, 10), TverskyConfig())
    assert not any(isinstance(module, columns._AffineWithOwnColumns) for module in lower_head(head).modules())
