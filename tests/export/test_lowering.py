from __future__ import annotations

import copy
import warnings
from collections import Counter
from pathlib import Path

import definitions
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tnn_export import ExportError, lower_head, lower_model
from tnn_export.lowering import LOWERINGS, tversky
from tnn_train import LinearHead, ModelConfig, TverskyConfig, TverskyHead, build_model, load_checkpoint
from tnn_train.heads import HEADS
from tnn_train.loop import TrainResult
from tnn_train.similarity import DIFFERENCES, INTERSECTIONS, MODELS

FORMS = [
    TverskyConfig(6, model, intersection, difference, 0.4, 0.9, 1.3)
    for model in MODELS
    for intersection in INTERSECTIONS
    for difference in DIFFERENCES
]
NAMES = [f"{form.model}-{form.intersection}-{form.difference}" for form in FORMS]


def random_head(config: TverskyConfig, seed: int = 0) -> tuple[TverskyHead, torch.Tensor]:
    torch.manual_seed(seed)
    head = TverskyHead(5, 4, config)
    nn.init.normal_(head.feature_bank)
    nn.init.normal_(head.prototypes)
    x = torch.randn(60, 5)
    return head, x[(head.project(x).abs() > 1e-3).all(1)][:6]


def to_onnx(head: nn.Module, path: Path) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            head,
            (torch.zeros(2, 5),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            verbose=False,
        )
    return onnx.load(path)


@given(st.sampled_from(FORMS), st.integers(0, 10_000))
@settings(deadline=None, max_examples=200)
def test_lowered_equals_the_definitions_in_float64(config: TverskyConfig, seed: int) -> None:
    head, x = random_head(config, seed)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    error = np.abs(lower_head(head)(x).numpy() - expected)
    assert (error <= 2e-5 * (magnitude + 1)).all()


@pytest.mark.parametrize("config", FORMS, ids=NAMES)
def test_every_form_runs_in_onnx_and_torchscript_at_any_batch_size(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    lowered = lower_head(head)
    to_onnx(lowered, tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(lowered)
    for size in (1, 3, 6):
        with torch.no_grad():
            expected = head(x[:size]).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x[:size].numpy()})[0], expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(scripted(x[:size]).numpy(), expected, rtol=2e-5, atol=2e-5)


def test_a_prototype_on_the_membership_boundary_stays_on_its_side() -> None:
    """A feature of a prototype that is 0 but for rounding has one sign in float32 and another in float64."""
    for seed in range(100):
        head, x = random_head(TverskyConfig(6, difference="ignorematch"), seed)
        with torch.no_grad():
            row, prototype = head.feature_bank[0].double(), head.prototypes[0].double()
            head.prototypes[0] = (prototype - (prototype @ row) / (row @ row) * row).float()
            exact = head.prototypes.double() @ head.feature_bank.double().T
            if (head.project(head.prototypes)[0, 0] > 0) != (exact[0, 0] > 0):
                break
    else:
        pytest.fail("no seed gave two signs")
    with torch.no_grad():
        torch.testing.assert_close(lower_head(head)(x), head(x), rtol=2e-5, atol=2e-5)


_JUMP = {"Gemm": 2, "Relu": 1, "Greater": 1, "Cast": 1, "Concat": 1}
_MINIMA = {"Gemm": 2, "Relu": 1, "Unsqueeze": 1, "Min": 1, "ReduceSum": 1, "Mul": 1, "Add": 1}
OPERATORS = {
    "contrast-product-ignorematch": _JUMP,
    "contrast-product-subtractmatch": _MINIMA,
    "ratio-product-ignorematch": {**_JUMP, "Split": 1, "Div": 1},
    "ratio-product-subtractmatch": {**_MINIMA, "Concat": 1, "Split": 1, "Div": 1},
}


@pytest.mark.parametrize("config", FORMS, ids=NAMES)
def test_the_projection_and_one_more_matrix_product_are_all_there_is(config: TverskyConfig, tmp_path: Path) -> None:
    graph = to_onnx(lower_head(random_head(config)[0]), tmp_path / "head.onnx").graph
    counts = Counter("Gemm" if node.op_type == "MatMul" else node.op_type for node in graph.node)
    assert counts == OPERATORS[f"{config.model}-{config.intersection}-{config.difference}"]


def test_the_trained_model_is_not_touched(runs: dict[str, TrainResult]) -> None:
    for run in runs.values():
        model = load_checkpoint(run.best).model.train()
        before = copy.deepcopy(model.state_dict())
        x = torch.randn(3, 3, 16, 16)
        lowered = lower_model(model)
        assert model.training
        assert not lowered.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        torch.testing.assert_close(lowered(x), model.eval()(x), rtol=1e-4, atol=1e-4)
        nn.init.zeros_(lowered.backbone.conv1.weight)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_every_head_and_every_measure_has_a_lowering() -> None:
    assert set(LOWERINGS) == set(HEADS.values())
    assert set(tversky._INTERSECTIONS) == set(INTERSECTIONS)
    assert set(tversky._DIFFERENCES) == set(DIFFERENCES)


def test_a_head_without_a_lowering_is_named() -> None:
    class Other(LinearHead):
        pass

    model = build_model(ModelConfig(backbone="tiny"))
    model.head = Other(24, 10)
    with pytest.raises(
        ExportError, match="no lowering for a head of type Other; expected one of LinearHead, TverskyHead"
    ):
        lower_model(model)
