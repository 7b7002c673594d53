"""Lowered logic heads: Boolean operators that give exactly what the discrete head gives."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from covering import covering_array
from forms import Together, to_onnx
from oracles import logic as oracle
from torch import Tensor

from tnn_export import ExportError, export_bundle, lower_head
from tnn_export.__main__ import main as tnn_export
from tnn_export.lowering import lower_maps
from tnn_export.lowering.graph import extra_outputs
from tnn_runtime import Classifier
from tnn_train import ImageData, LogicConfig, LogicHead, ModelConfig, TrainConfig, train
from tnn_train.heads.logic.config import DISTRIBUTIVE, FIXED, LEARNED, RAW, WARP

SIZE, CLASSES = 5, 4
CHOICES = {
    "bits": (2, 4),
    "thresholds": (FIXED, DISTRIBUTIVE, LEARNED),
    "layers": (1, 2, 4),
    "width": (12, None),
    "parametrization": (RAW, WARP),
    "residual": (0.0, 0.9),
}
ROWS = covering_array(CHOICES, 2)


def random_head(config: LogicConfig, seed: int = 0) -> tuple[LogicHead, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(50, SIZE)
    head = LogicHead(SIZE, CLASSES, config)
    head.start([(x, torch.zeros(50))])
    with torch.no_grad():
        for layer in head.layers:
            layer.scores += torch.randn_like(layer.scores)
    return head.eval(), x


HEADS = [random_head(LogicConfig(**row), seed)[0] for seed, row in enumerate(ROWS)]  # type: ignore[arg-type]


def test_it_gives_exactly_what_the_discrete_head_and_its_definition_give() -> None:
    x = torch.randn(20, SIZE)
    for head in HEADS:
        with torch.no_grad():
            found = lower_head(head)(x)
            assert torch.equal(found, head(x))
        np.testing.assert_allclose(found.numpy(), oracle.logits(head, x.numpy()), rtol=1e-6)


def test_every_form_is_exact_in_onnx_torchscript_and_pt2(tmp_path: Path) -> None:
    together = Together([lower_head(head) for head in HEADS]).eval()
    session = onnxruntime.InferenceSession(to_onnx(together, tmp_path / "heads.onnx"))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(together, (torch.zeros(2, SIZE),), dynamic_shapes=batch).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.freeze(torch.jit.script(together))
    for size in (1, 3, 64):
        x = torch.randn(size, SIZE)
        with torch.no_grad():
            expected = [head(x).numpy() for head in HEADS]
        for found in (session.run(None, {"x": x.numpy()}), scripted(x), program(x)):
            assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_there_are_few_operators_however_many_gates(tmp_path: Path) -> None:
    head, _ = random_head(LogicConfig(bits=4, width=128, layers=3, residual=0.0))
    graph = onnx.load(to_onnx(lower_head(head), tmp_path / "head.onnx")).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["And"] <= 2 * 3
    assert counts["Or"] <= 3
    assert counts["Xor"] <= 3
    assert counts["Gather"] <= 2 + 8 * 3
    assert sum(counts.values()) < 70


def test_tensorrt_builds_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")
    from tnn_runtime.engines import build_engine, find_tensorrt

    model = to_onnx(Together([lower_head(head) for head in HEADS[:6]]), tmp_path / "heads.onnx")
    library = find_tensorrt("tensorrt_rtx")
    engine = build_engine(model, tmp_path, input_name="x", shape=(SIZE,), batch=(1, 8, 64), library=library)
    assert engine.stat().st_size > 1000


def test_a_logic_head_has_no_parts_and_no_maps() -> None:
    with pytest.raises(ExportError, match="a logic head gives logits alone"):
        lower_head(HEADS[0], parts=True)
    with pytest.raises(ExportError, match="a logic head has no feature maps"):
        lower_maps(HEADS[0])
    assert extra_outputs("logic") == ("probabilities",)
    assert extra_outputs("logic", "lvq") == ("probabilities", "feature_maps", "distances", "nearest", "confidence")


@pytest.fixture(scope="module")
def run(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logic head on the pixels of RGB photos; read only."""
    recipe = TrainConfig(epochs=3, batch_size=16, augment=())
    model = ModelConfig("pixels", "logic", logic=LogicConfig(bits=2, layers=2))
    return train(data, tmp_path_factory.mktemp("logic") / "run", model, recipe).best


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_of_a_logic_head_on_pixels_is_exact(run: Path, tmp_path: Path, precision: str) -> None:
    formats = {"fp32": ("onnx", "torchscript", "pt2"), "fp16": ("onnx", "torchscript"), "int8": ("onnx",)}[precision]
    report = export_bundle(run, tmp_path / "bundle", formats, precision)
    assert report.passed
    assert all(stage.max_rel_diff == 0 for stage in report.stages.values())


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_old_and_new_opsets_have_what_it_needs(run: Path, data: ImageData, tmp_path: Path, opset: int) -> None:
    assert tnn_export([str(run), "-o", str(tmp_path / "bundle"), "--opset", str(opset)]) == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["parity"]["onnx"]["max_rel_diff"] == 0
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        assert classifier.logits(data.test.pixels).shape == (len(data.test), len(data.class_names))


def test_an_output_of_another_head_is_refused_with_those_that_there_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tnn_export([str(run), "-o", str(tmp_path / "bundle"), "--outputs", "distances"]) == 1
    assert "a logic head has no output distances; it has probabilities: leave distances out" in capsys.readouterr().err


def test_edits_are_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tnn_export(["edit", str(run), "-o", str(tmp_path / "edit"), "--drop-features", "3"]) == 1
    assert "a logic head has no features that can be edited; train a head that has some" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
