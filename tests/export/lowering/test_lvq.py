"""Lowered heads of learning vector quantisation against eager ones, in every format, with no more than one product."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from forms import Together, to_onnx
from lvq_forms import SIZE, TogetherWithParts, each_form, forms, name, random_head
from oracles import lvq as oracle

from tnn_export import ExportError, lower_head
from tnn_export.lowering import lower_maps
from tnn_train import LvqConfig


@each_form
def test_lowered_equals_the_definition_in_float64(config: LvqConfig) -> None:
    head, x = random_head(config, 1)
    inputs = x.double().numpy()
    expected, distances = oracle.logits(head, inputs), oracle.distances(head, inputs)
    found = lower_head(head, parts=True)(x)
    scale = 2e-5 * (np.abs(expected).max(1, keepdims=True) + 1)
    for logits in (lower_head(head)(x), found["logits"]):
        assert (np.abs(logits.numpy() - expected) <= scale).all()
    assert list(found) == ["logits", *head.evidence_meanings]
    np.testing.assert_allclose(found["distances"].numpy(), distances, rtol=1e-4, atol=2e-5 * distances.max())
    np.testing.assert_array_equal(found["nearest"].numpy()[:, 0], distances.argmin(1))
    np.testing.assert_allclose(found["confidence"].numpy()[:, 0], oracle.confidence(head, inputs), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_every_form_runs_in_onnx_torchscript_and_pt2_at_any_batch_size(parts: bool, tmp_path: Path) -> None:
    heads = [random_head(config)[0] for config in forms()]
    _, x = random_head(LvqConfig())
    lowered = (TogetherWithParts if parts else Together)([lower_head(head, parts=parts) for head in heads]).eval()
    session = onnxruntime.InferenceSession(
        to_onnx(lowered, tmp_path / "heads.onnx", SIZE), providers=["CPUExecutionProvider"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.freeze(torch.jit.script(lowered))
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(lowered, (torch.zeros(2, SIZE),), dynamic_shapes=(batch,)).module()
    for size in (1, 3, 7):
        rows = x[:size]
        with torch.no_grad():
            expected = []
            for head in heads:
                expected += [head(rows), *(head.evidence(rows).values() if parts else ())]
        for found in (session.run(None, {"x": rows.numpy()}), scripted(rows), exported(rows)):
            for one, other in zip(found, expected, strict=True):
                scale = 2e-5 * (other.abs().max().item() + 1)
                np.testing.assert_allclose(np.asarray(one), other.numpy(), rtol=1e-4, atol=scale)


NETWORK = {"relu": "Relu", "selu": "Selu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


@pytest.mark.parametrize("config", [config for config in forms() if config.pooling == "nearest"], ids=name)
def test_logits_are_one_product_and_the_largest_of_each_class(config: LvqConfig, tmp_path: Path) -> None:
    head, _ = random_head(config)
    graph = onnx.load(to_onnx(lower_head(head), tmp_path / "head.onnx", SIZE)).graph
    expected = Counter({"Gemm": 1})
    if config.latent is not None:
        layers = len(config.hidden) + 1
        expected["Gemm"] += layers
        expected[NETWORK[config.activation]] += layers - (not config.activate_latent)
    if len(head.owners) > head.num_classes:
        expected += Counter({"Reshape": 1, "ReduceMax": 1})
        expected["Gather"] += len(set(Counter(head.owners.tolist()).values())) > 1
    assert Counter(node.op_type for node in graph.node) == +expected


def test_the_trained_head_is_not_touched_and_no_random_numbers_are_drawn() -> None:
    for config in forms():
        head, _ = random_head(config)
        before, state = torch.get_rng_state(), {name: value.clone() for name, value in head.state_dict().items()}
        lower_head(head, parts=True)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(state[name], value) for name, value in head.state_dict().items())
        assert all(parameter.requires_grad for parameter in head.parameters())


def test_latent_values_have_no_maps() -> None:
    head, _ = random_head(LvqConfig())
    maps = torch.randn(2, SIZE, 3, 3)
    torch.testing.assert_close(lower_maps(head)(maps, maps.mean((2, 3))), maps)
    with pytest.raises(ExportError, match="lvq head with a network .* leave the output feature_maps out"):
        lower_maps(random_head(LvqConfig(latent=3))[0])


def test_far_from_the_origin_the_lowered_head_keeps_its_answers() -> None:
    head, x = random_head(LvqConfig(relevances="matrix", prototypes=3))
    with torch.no_grad():
        head.prototypes += 100
        expected = oracle.logits(head, (x + 100).double().numpy())
        found = lower_head(head)(x + 100).numpy()
    assert (np.abs(found - expected) <= 1e-4 * np.abs(expected).max()).all()
