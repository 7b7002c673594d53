from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from pathlib import Path

import definitions
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from explanations import check_explanations
from forms import COVERING, MEASURES, Together, away, each_batch_of_forms, each_form, name, random_head, seeds, to_onnx
from hypothesis import given, settings
from torch import nn

from tnn_export import ExportError, lower_head, lower_model
from tnn_export.lowering import LOWERINGS
from tnn_export.lowering.tversky import affine
from tnn_export.lowering.tversky import head as tversky
from tnn_train import LinearHead, ModelConfig, TverskyConfig, TverskyHead, build_model, load_checkpoint
from tnn_train.heads import HEADS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MODELS
from tnn_train.training.loop import TrainResult


def graph_of(head: nn.Module, path: Path) -> onnx.GraphProto:
    return onnx.load(to_onnx(head, path)).graph


@each_form()
@given(seed=seeds)
@settings(max_examples=20)
def test_lowered_equals_the_definitions_in_float64(config: TverskyConfig, seed: int) -> None:
    head, x = random_head(config, seed)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    error = np.abs(lower_head(head)(x).numpy() - expected)
    assert (error <= 2e-5 * (magnitude + 1)).all()


@each_form()
def test_the_parts_are_those_of_the_definitions(config: TverskyConfig) -> None:
    head, x = random_head(config, 1)
    outputs = lower_head(head, parts=True)(x)
    inputs = x.double().numpy()
    weight = 1.0 if head.feature_weight is None else definitions.as_array(head.feature_weight)
    measured = definitions.measures(
        definitions.feature_values(head, inputs), definitions.prototype_values(head), config, weight
    )
    theta = 1.0 if config.model == "ratio" else definitions.as_array(head.theta)
    factors = (theta, definitions.as_array(head.alpha), definitions.as_array(head.beta))
    assert list(outputs) == ["logits", *TverskyHead.evidence_meanings]
    for part, factor in zip(measured._fields, factors, strict=True):
        found, expected = outputs[part].numpy(), factor * getattr(measured, part)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-4)
    similarities, _ = definitions.similarities_to_prototypes(head, inputs)
    np.testing.assert_allclose(outputs["similarities"].numpy(), similarities, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(outputs["logits"].numpy(), definitions.logits(head, inputs)[0], rtol=2e-5, atol=1e-4)


@each_form()
def test_degenerate_inputs_give_numbers(config: TverskyConfig) -> None:
    head, x = random_head(config, 2)
    with torch.no_grad():
        head.prototypes[0] = 0
    x = torch.cat([torch.zeros(1, 5), torch.full((1, 5), -1e-30), torch.full((1, 5), 1e4), x])
    expected, magnitude = definitions.logits(head, x.double().numpy())
    assert (np.abs(lower_head(head)(x).numpy() - expected) <= 2e-5 * (magnitude + 1)).all()


@pytest.mark.slow
@each_batch_of_forms()
def test_every_form_runs_in_onnx_and_torchscript_at_any_batch_size_and_is_explained(
    configs: list[TverskyConfig], tmp_path: Path
) -> None:
    heads = [random_head(config)[0] for config in configs]
    x = torch.randn(200, 5)
    x = x[torch.stack([away(head, x) for head in heads]).all(0)][:6]
    assert len(x) == 6
    lowered = Together([lower_head(head) for head in heads])
    to_onnx(lowered, tmp_path / "heads.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "heads.onnx", providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.freeze(torch.jit.script(lowered.eval()))
    for size in (1, 3, 6):
        with torch.no_grad():
            expected = [head(x[:size]).numpy() for head in heads]
        for found in (session.run(None, {"x": x[:size].numpy()}), scripted(x[:size])):
            for head, one, other in zip(heads, found, expected, strict=True):
                _, magnitude = definitions.logits(head, x[:size].double().numpy())
                assert (np.abs(np.asarray(one) - other) <= 2e-5 * (magnitude + 1)).all(), name(head.config)
    for head, logits in zip(heads, session.run(None, {"x": x.numpy()}), strict=True):
        check_explanations(head, x, logits, tmp_path)


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


PROJECTION = Counter({"Gemm": 1, "Relu": 1})
NORMALIZE = Counter({"ReduceL2": 1, "Clip": 1, "Div": 1})
HARD, SIGMOID = Counter({"Greater": 1, "Cast": 1}), Counter({"Mul": 2, "Sigmoid": 1})
ROOT = Counter({"Sqrt": 1})
OPPOSITES = Counter({"Mul": 1, "Concat": 1})
MINIMA = Counter({"Unsqueeze": 1, "Min": 1, "ReduceSum": 1, "Mul": 1, "Add": 1})
SOFT_MINIMA = Counter(
    {"Unsqueeze": 2, "Min": 1, "Sub": 2, "Abs": 1, "Neg": 1, "Exp": 1, "Add": 2, "Log": 1, "Mul": 2}
    | {"MatMul": 1, "Squeeze": 1}
)
QUOTIENT = Counter({"Split": 1, "Div": 1})
LINEAR = Counter({"Gemm": 1})
"""The operators of each step; each pairwise sum has one block here."""


def expected_operators(config: TverskyConfig) -> Counter[str]:
    """Return the operators of a form with a learned bank: two GEMMs, and what its measures cannot do without."""
    ignores, ratio = config.difference == "ignorematch", config.model == "ratio"
    is_shared = config.difference == "excess" and config.membership == "sigmoid"
    uses_present = config.intersection in ("mean", "max") or config.difference in ("ignorematch", "excess")
    uses_present |= ratio and config.intersection == "softmin"
    uses_root = config.intersection == "gmean"
    uses_positive = config.intersection in ("product", "mean", "max") or ignores or not (uses_present or uses_root)
    uses_positive |= not ignores
    sums = [MINIMA] * (config.intersection in ("min", "max") or not (ignores or is_shared))
    sums += [SOFT_MINIMA] * (config.intersection == "softmin")
    sums += [MINIMA + Counter({"Mul": 1})] * is_shared
    needs_memberships = uses_present or config.intersection == "softmin"
    count = PROJECTION + LINEAR + sum(sums, Counter())
    if len(sums) == 2 and not is_shared:
        count -= Counter({"Unsqueeze": 1, "Min": 1})  # The exporter notices that both sums begin alike.
    count += NORMALIZE if config.normalize else Counter()
    count += OPPOSITES if config.opposites else Counter()
    count += SIGMOID if config.membership == "sigmoid" else HARD if needs_memberships else Counter()
    count += ROOT if uses_root else Counter()
    count["Concat"] += uses_positive + uses_present + uses_root > 1
    if ratio:
        count += QUOTIENT
        count["Concat"] += len(sums)
    if config.num_prototypes is not None:
        count += LINEAR if ratio else Counter({"Gemm": len(sums)})
        count["Mul"] -= 0 if ratio else len(sums)
    return +count


@each_form(strength=2, feature_bank="learned")
def test_a_form_has_no_more_operators_than_it_needs(config: TverskyConfig, tmp_path: Path) -> None:
    graph = graph_of(lower_head(random_head(config)[0]), tmp_path / "head.onnx")
    assert Counter(node.op_type for node in graph.node) == expected_operators(config)


def test_a_diagonal_bank_needs_no_projection(tmp_path: Path) -> None:
    for difference, others in (("ignorematch", HARD + Counter(Concat=1)), ("subtractmatch", MINIMA)):
        head, _ = random_head(TverskyConfig(feature_bank="diagonal", difference=difference))
        graph = graph_of(lower_head(head), tmp_path / "head.onnx")
        expected = Counter(Abs=1, Gemm=1) + others
        if difference == "subtractmatch":
            expected += Counter(MatMul=1)
            del expected["ReduceSum"]
        assert Counter(node.op_type for node in graph.node) == expected


@pytest.mark.parametrize(
    ("options", "kinds"),
    [({}, 1), ({"intersection": "softmin"}, 2), ({"difference": "excess", "membership": "sigmoid"}, 1)],
)
def test_large_heads_are_cut_into_blocks(options: dict[str, str], kinds: int, tmp_path: Path) -> None:
    head = TverskyHead(5, 700, TverskyConfig(100, num_prototypes=350, **options))  # type: ignore[arg-type]
    lowered = lower_head(head)
    graph = graph_of(lowered, tmp_path / "head.onnx")
    largest = max((tensor.dims for tensor in graph.initializer if len(tensor.dims) == 2), key=lambda dims: dims[0])
    assert largest[0] == 700
    blocks = -(-350 // (tversky.BLOCK_VALUES // 100))
    assert blocks > 1
    assert Counter(node.op_type for node in graph.node)["Min"] == kinds * blocks
    x = torch.randn(9, 5)
    torch.testing.assert_close(lowered(x), head(x), rtol=1e-4, atol=1e-4)


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
    assert set(LOWERINGS) == set(HEADS)
    assert set(affine.INTERSECTIONS) == set(INTERSECTIONS)
    assert set(affine.DIFFERENCES) == set(DIFFERENCES)


def test_lowering_draws_no_random_numbers() -> None:
    for config in COVERING:
        head, _ = random_head(config)
        before = torch.get_rng_state()
        lower_head(head)
        lower_head(head, parts=True)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("zero", [("alpha",), ("beta",), ("alpha", "beta"), ("theta",)])
@pytest.mark.parametrize("config", MEASURES, ids=name)
def test_terms_that_weigh_nothing(config: TverskyConfig, zero: tuple[str, ...]) -> None:
    if config.model == "ratio":
        zero = tuple(scalar for scalar in zero if scalar != "theta")
    head, x = random_head(dataclasses.replace(config, fixed=zero, **dict.fromkeys(zero, 0.0)))
    expected, magnitude = definitions.logits(head, x.double().numpy())
    for found in (head(x), lower_head(head)(x), lower_head(head, parts=True)(x)["logits"]):
        assert (np.abs(found.detach().numpy() - expected) <= 2e-5 * (magnitude + 1)).all()


def test_a_linear_head_has_no_parts() -> None:
    with pytest.raises(ExportError, match="a linear head gives logits alone, nothing that they are made of"):
        lower_head(LinearHead(5, 4), parts=True)


@pytest.mark.parametrize(("model", "smooth"), [*((model, False) for model in MODELS), ("ratio", True)])
@pytest.mark.parametrize("num_prototypes", [None, 7])
def test_the_parts_run_in_onnx_and_torchscript(
    model: str, smooth: bool, num_prototypes: int | None, tmp_path: Path
) -> None:
    head, x = random_head(TverskyConfig(6, model=model, smooth=smooth, num_prototypes=num_prototypes))
    lowered = lower_head(head, parts=True)
    to_onnx(lowered, tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.freeze(torch.jit.script(lowered))
    expected = lowered(x)
    torch.testing.assert_close(expected["logits"], head(x), rtol=2e-5, atol=2e-5)
    for found in (session.run(None, {"x": x.numpy()}), scripted(x).values()):
        for one, other in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(np.asarray(one), other.numpy(), rtol=2e-5, atol=2e-5)


def test_a_head_without_a_lowering_is_named() -> None:
    class Other(LinearHead):
        family = "other"

    model = build_model(ModelConfig(backbone="tiny"))
    model.head = Other(24, 10)
    with pytest.raises(ExportError, match="no lowering for the head family other; expected one of linear, tversky, "):
        lower_model(model)
