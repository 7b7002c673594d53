"""Lowered parts heads against eager ones: in torch, ONNX Runtime, TorchScript, torch.export and TensorRT for RTX."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from oracles import parts as oracle
from part_heads import ALL, COVERING, PLACES, SIZE, name, random_parts
from torch import Tensor, nn

from tnn_export.lowering import lower_head, lower_maps
from tnn_runtime.engines import build_engine, find_tensorrt
from tnn_train import PartsConfig
from tnn_train.heads.parts.head import PartsHead


class Whole(nn.Module):
    """What a bundle computes of a map: logits and similarities of each head, and its feature maps."""

    def __init__(self, heads: list[PartsHead]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([lower_head(head, parts=True) for head in heads])
        self.maps = nn.ModuleList([lower_maps(head) for head in heads])

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for head in self.heads:
            values = head(x)
            found += [values["logits"], values["similarities"]]
        return found + [maps(x, x) for maps in self.maps]


def expected_of(heads: list[PartsHead], x: Tensor) -> list[np.ndarray]:
    found = []
    with torch.no_grad():
        for head in heads:
            found += [head(x), head.similarities(x)]
        found += [head.feature_maps(x, x) for head in heads]
    return [one.numpy() for one in found]


def check(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * max(1, np.abs(other).max()))


def to_onnx(heads: list[PartsHead], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Whole(heads).eval(),
            (torch.zeros(2, SIZE, *PLACES),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            external_data=False,
            verbose=False,
        )
    return path


@pytest.mark.parametrize("config", ALL, ids=name)
def test_lowered_equals_the_definition(config: PartsConfig) -> None:
    head, x = random_parts(config, 3)
    maps = x.double().numpy()
    found = lower_head(head)(x).numpy()
    np.testing.assert_allclose(found, oracle.logits(head, maps), rtol=2e-5, atol=1e-4)
    found = lower_maps(head)(x, x).detach().numpy()
    np.testing.assert_allclose(found, oracle.similarity_maps(head, maps), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("config", [one for one in COVERING if one.kind == "protopnet"], ids=name)
def test_a_place_that_is_the_prototype_is_as_similar_as_can_be(config: PartsConfig) -> None:
    head, x = random_parts(config)
    with torch.no_grad():
        head.detector.prototypes.copy_(head.detector.encode(x[:1])[0, :, 1, 1].expand_as(head.detector.prototypes))
    largest = 0 if config.similarity == "linear" else np.log(1 / config.epsilon)
    assert lower_head(head, parts=True)(x[:1])["similarities"].numpy() == pytest.approx(largest, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("config", COVERING, ids=name)
def test_degenerate_maps_give_numbers(config: PartsConfig) -> None:
    head, x = random_parts(config)
    maps = torch.cat([torch.zeros(1, *x.shape[1:]), torch.full((1, *x.shape[1:]), 1e-30), 1e4 * x])
    expected, found = oracle.logits(head, maps.double().numpy()), lower_head(head)(maps).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_all_forms_run_in_onnx_torchscript_and_torch_export(tmp_path: Path) -> None:
    heads = [random_parts(config)[0] for config in COVERING]
    _, x = random_parts(COVERING[0])
    session = onnxruntime.InferenceSession(to_onnx(heads, tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    whole = Whole(heads).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.freeze(torch.jit.script(whole))
        exported = torch.export.export(whole, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        file = io.BytesIO()
        torch.export.save(exported, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
    for count in (1, 3, 5):
        expected = expected_of(heads, x[:count])
        check(session.run(None, {"x": x[:count].numpy()}), expected)
        with torch.no_grad():
            check([one.numpy() for one in scripted(x[:count])], expected)
            if count > 1:
                check([one.numpy() for one in loaded(x[:count])], expected)


@pytest.mark.slow
def test_tensorrt_builds_all_forms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")
    file = to_onnx([random_parts(config)[0] for config in COVERING], tmp_path / "x.onnx")
    library = find_tensorrt("tensorrt_rtx")
    engine = build_engine(file, tmp_path, input_name="x", shape=(SIZE, *PLACES), batch=(1, 2, 4), library=library)
    assert engine.stat().st_size > 1000
    assert not [one for one in caplog.records if one.name.startswith("tnn_") and one.levelno > logging.INFO]


def test_lowering_draws_no_random_numbers() -> None:
    for config in COVERING:
        head, _ = random_parts(config)
        before = torch.get_rng_state()
        lower_head(head, parts=True)
        lower_maps(head)
        assert torch.equal(torch.get_rng_state(), before)
