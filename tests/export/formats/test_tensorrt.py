"""TensorRT's parser and builder take every form; TensorRT for RTX builds engines without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path

import lvq_forms
import onnx
import onnx.compose
import pytest
import torch
from forms import SIZE, Together, each_batch_of_forms, name, random_head, to_onnx
from lvq_forms import SIZE as LVQ_SIZE
from torch import Tensor, nn

from tnn_export import lower_head
from tnn_runtime.engines import build_engine, find_tensorrt
from tnn_train import TverskyConfig, TverskyHead

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")


class Backbone(nn.Module):
    """A layer in half precision whose embedding is float32, as the heads take it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.linear.weight.dtype)).float()


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> list[onnx.ModelProto]:
    """A backbone in float16 and one in bfloat16."""
    folder = tmp_path_factory.mktemp("backbones")
    models = [onnx.load(to_onnx(Backbone(dtype), folder / "model.onnx")) for dtype in (torch.float16, torch.bfloat16)]
    types = [{tensor.data_type for tensor in model.graph.initializer} for model in models]
    assert types == [{onnx.TensorProto.FLOAT16}, {onnx.TensorProto.BFLOAT16}]
    return models


def behind(backbone: onnx.ModelProto, heads: onnx.ModelProto, path: Path) -> Path:
    """Write heads that take their embedding from a backbone."""
    onnx.save(
        onnx.compose.merge_models(
            backbone, heads, io_map=[(backbone.graph.output[0].name, heads.graph.input[0].name)], prefix2="heads."
        ),
        path,
    )
    return path


@pytest.mark.slow
@each_batch_of_forms(48)
def test_every_form_is_parsed_and_built_alone_and_behind_half_precision(
    configs: list[TverskyConfig], backbones: list[onnx.ModelProto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heads = to_onnx(Together([lower_head(random_head(config)[0]) for config in configs]), tmp_path / "heads.onnx")
    wholes = [behind(one, onnx.load(heads), tmp_path / f"whole-{index}.onnx") for index, one in enumerate(backbones)]
    library = find_tensorrt("tensorrt_rtx")
    for model in (heads, *wholes):
        engine = build_engine(model, tmp_path, input_name="x", shape=(SIZE,), batch=(1, 8, 64), library=library)
        assert engine.stat().st_size > 1000
    complaints = [
        record for record in caplog.records if record.name.startswith("tnn_") and record.levelno > logging.INFO
    ]
    assert not complaints, [name(config) for config in configs]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True])
def test_learning_vector_quantisation_is_parsed_and_built(parts: bool, tmp_path: Path) -> None:
    configs = lvq_forms.forms()[:: 5 if parts else 1]
    heads = [lower_head(lvq_forms.random_head(config)[0], parts=parts) for config in configs]
    model = to_onnx(lvq_forms.TogetherWithParts(heads) if parts else Together(heads), tmp_path / "heads.onnx", LVQ_SIZE)
    library = find_tensorrt("tensorrt_rtx")
    engine = build_engine(model, tmp_path, input_name="x", shape=(LVQ_SIZE,), batch=(1, 8, 64), library=library)
    assert engine.stat().st_size > 1000


def test_a_head_of_many_classes_is_parsed_and_built(tmp_path: Path) -> None:
    """Its lowering picks columns out, as that of a small head does not."""
    torch.manual_seed(0)
    head = lower_head(TverskyHead.from_linear(nn.Linear(SIZE, 600), TverskyConfig()))
    model = to_onnx(head, tmp_path / "head.onnx")
    assert "Gather" in {node.op_type for node in onnx.load(model).graph.node}
    library = find_tensorrt("tensorrt_rtx")
    engine = build_engine(model, tmp_path, input_name="x", shape=(SIZE,), batch=(1, 8, 64), library=library)
    assert engine.stat().st_size > 1000
