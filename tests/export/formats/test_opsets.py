"""The versions of ONNX, and the versions of ONNX Runtime that read them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import FIXTURES
from onnx import TensorProto, helper
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from tnn_export import ExportError, ExportOptions, export_bundle
from tnn_export.__main__ import main
from tnn_export.bundle.inspect import inspect_bundle
from tnn_export.formats import ExportJob
from tnn_export.formats.onnx import export_onnx
from tnn_export.formats.opsets import CONVERTED, OPSETS, oldest_runtime, set_smallest_ir, with_opset
from tnn_export.lowering.graph import ServingModel, extra_outputs
from tnn_export.proof.running import fresh_process
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, ImageData, ModelConfig, build_model
from tnn_train.model.backbones import BACKBONES
from tnn_train.training.loop import TrainResult

VERSIONS = {
    13: (7, "1.6"),
    14: (7, "1.8"),
    15: (8, "1.9"),
    16: (8, "1.11"),
    17: (8, "1.12"),
    18: (8, "1.14"),
    19: (9, "1.16"),
    20: (9, "1.17"),
    21: (10, "1.18"),
    22: (10, "1.21"),
    23: (10, "1.23"),
}
"""For each opset the IR version that a graph needs, and the oldest ONNX Runtime that loads it."""

PREPROCESSING = Preprocessing(32, 32, 3, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("opset", VERSIONS)
def test_every_opset_is_proven_and_has_the_smallest_ir(
    opset: int, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(VERSIONS) == list(OPSETS)
    options = ExportOptions(("onnx",), outputs=extra_outputs("tversky"), opset=opset)
    assert export_bundle(runs["ratio"].best, tmp_path / "out", options=options).passed
    ir, runtime = VERSIONS[opset]
    graph = inspect_bundle(tmp_path / "out")["onnx"]
    assert (graph["opset"], graph["ir_version"], graph["onnxruntime"]) == ({"ai.onnx": opset}, ir, runtime)
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert f"ai.onnx {opset}, IR {ir}: ONNX Runtime {runtime} or newer" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_so_is_every_precision(opset: int, precision: str, runs: dict[str, TrainResult], tmp_path: Path) -> None:
    options = ExportOptions(("onnx",), precision, batch=BatchBounds(1, 8), opset=opset)
    assert export_bundle(runs["jumping"].best, tmp_path / "out", options=options).passed
    graph = inspect_bundle(tmp_path / "out")["onnx"]
    assert (graph["ir_version"], graph["onnxruntime"]) == VERSIONS[opset]


def test_a_converted_graph_is_the_same_each_time(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    for name in ("one", "other"):
        export_bundle(runs["ratio"].best, tmp_path / name, options=ExportOptions(("onnx",), opset=13))
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "other" / "model.onnx").read_bytes()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_bundles_say_which_runtime_their_ir_needs(version: int) -> None:
    graph = inspect_bundle(FIXTURES / f"bundle-v{version}")["onnx"]
    assert graph["onnxruntime"] == {10: "1.18", 9: "1.17"}[graph["ir_version"]]


@pytest.mark.parametrize(
    ("opsets", "ir", "runtime"),
    [
        ({"": 20}, 9, "1.17"),
        ({"": 13}, 10, "1.18"),
        ({"": 17}, 11, "1.23"),
        ({"": 12}, 7, None),
        ({"": 99}, 10, None),
        ({"": 18}, 99, None),
        ({"": 18, "com.microsoft": 1}, 8, None),
    ],
)
def test_a_runtime_is_named_where_it_is_known(opsets: dict[str, int], ir: int, runtime: str | None) -> None:
    model = onnx.ModelProto(ir_version=ir, opset_import=[helper.make_opsetid(*entry) for entry in opsets.items()])
    assert oldest_runtime(model) == runtime


class Wide(nn.Module):
    """A backbone with one more layer between its convolution and its last layer."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, stride=4)
        self.between = between
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.conv(x).mean((2, 3))))


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([second.relu(), first], 1)


def job(between: nn.Module, opset: int, monkeypatch: pytest.MonkeyPatch) -> ExportJob:
    monkeypatch.setitem(BACKBONES, "wide", lambda: Wide(between))
    torch.manual_seed(0)
    model = build_model(ModelConfig("wide", head="linear", num_classes=3, stem="imagenet")).eval()
    return ExportJob(ServingModel(model, PREPROCESSING), opset=opset)


@pytest.mark.parametrize(
    ("layer", "operator", "oldest"), [(nn.LayerNorm(16), "LayerNormalization", 17), (nn.Hardswish(), "HardSwish", 14)]
)
def test_an_operator_that_an_older_opset_lacks_is_named(
    layer: nn.Module, operator: str, oldest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"opset {oldest - 1} \(.*{operator}.*\); choose a newer one: --opset 18 needs no conversion"
    with pytest.raises(ExportError, match=message):
        export_onnx(job(layer, oldest - 1, monkeypatch), tmp_path)
    assert onnx.load(export_onnx(job(layer, oldest, monkeypatch), tmp_path)).opset_import[0].version == oldest


@pytest.fixture(scope="module")
def unconverted() -> dict[str, np.ndarray]:
    """The logits of graphs that need no conversion, by their layer, once they have been computed."""
    return {}


@pytest.mark.parametrize("layer", [Halves(), nn.Flatten(), nn.Unflatten(1, (4, 4)), nn.PReLU()], ids=str)
@pytest.mark.parametrize("opset", CONVERTED)
def test_converted_graphs_give_the_same(
    opset: int, layer: nn.Module, unconverted: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)

    def logits(version: int) -> np.ndarray:
        flat = nn.Sequential(OrderedDict(one=layer, flat=nn.Flatten()))
        file = export_onnx(job(flat, version, monkeypatch), tmp_path)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"images": images})[0]

    if str(layer) not in unconverted:
        unconverted[str(layer)] = logits(18)
    np.testing.assert_allclose(logits(opset), unconverted[str(layer)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs"),
    [("ScatterElements", {"reduction": "add"}, ["x", "i", "x"]), ("GridSample", {}, ["x", "x"]), ("Mish", {}, ["x"])],
)
def test_attributes_and_operators_with_a_meaning_are_not_dropped(
    operator: str, attributes: dict[str, str], inputs: list[str]
) -> None:
    values = [helper.make_tensor_value_info(name, kind, [2, 2, 2, 2]) for name, kind in (("x", 1), ("i", 7))]
    node = helper.make_node(operator, inputs, ["y"], **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    with pytest.raises(Exception, match=f"{operator}|reduction"):
        with_opset(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), 13)


def test_the_ir_is_never_made_newer() -> None:
    model = onnx.ModelProto(ir_version=7, opset_import=[helper.make_opsetid("", 23)])
    set_smallest_ir(model)
    assert model.ir_version == 7


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("opset", [17, 18, 20])
def test_an_old_onnx_runtime_gives_the_same_logits(
    opset: int, precision: str, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    python = os.environ.get("TNN_OLD_RUNTIME")
    if python is None:
        pytest.skip("TNN_OLD_RUNTIME names no Python with ONNX Runtime 1.17, see docs/results/runtimes.md")
    options = ExportOptions(("onnx",), precision, extra_outputs("tversky"), opset=opset)
    export_bundle(runs["tversky"].best, tmp_path / "out", options=options)
    run = fresh_process("onnx", tmp_path / "out" / "model.onnx")
    new = run([data.test.pixels])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        old = run([data.test.pixels])
    assert old.library.startswith("onnxruntime 1.17.")
    assert old.library != new.library
    for name, values in new.outputs[0].items():
        np.testing.assert_allclose(old.outputs[0][name], values, rtol=1e-3, atol=1e-3 if precision == "fp32" else 5e-2)


class TestVisionTransformersInHalfPrecision:
    """ONNX Runtime 1.23 and later crash on them, unless an optimizer is left out."""

    @pytest.fixture
    def transformer(self, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
        monkeypatch.setitem(BACKBONES, "transformer", lambda: VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10))
        torch.manual_seed(0)
        config = ModelConfig("transformer", head="linear", num_classes=3, stem="imagenet")
        images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        return Checkpoint(build_model(config).eval(), config, PREPROCESSING, ("a", "b", "c"), images)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("opset", [17, pytest.param(20, marks=pytest.mark.exhaustive), 23])
    def test_they_are_proven_and_served(
        self, opset: int, precision: str, transformer: Checkpoint, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        report = export_bundle(transformer, out, options=ExportOptions(("onnx",), precision, opset=opset))
        crashed = "without MatmulTransposeFusion" in report.stages["onnx"].library
        assert crashed <= (precision == "fp16")
        note = "unless its session is made as tnn_runtime does: InferenceSession(..., disabled_optimizers=["
        assert (note in report.table()) == crashed
        assert (note in (out / "README.md").read_text()) == crashed
        program = "import sys, tnn_runtime; print(tnn_runtime.Classifier.load(sys.argv[1], 'cpu').info['precision'])"
        served = subprocess.run([sys.executable, "-c", program, out], capture_output=True, text=True, check=True)
        assert served.stdout == f"{precision}\n"

    def test_a_crash_that_stays_is_told(self, transformer: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"no model")
        with pytest.raises(ExportError, match=r"model.onnx does not run on cpu \("):
            fresh_process("onnx", tmp_path / "model.onnx")([transformer.samples])


@pytest.mark.parametrize(
    ("formats", "precision", "count"),
    [
        (("torchscript",), "fp16", 1),
        (("torchscript", "pt2"), "bf16", 2),
        (("onnx",), "fp16", 0),
        (("torchscript", "pt2"), "fp32", 0),
    ],
)
def test_what_is_slow_on_a_cpu_is_said(
    formats: tuple[str, ...], precision: str, count: int, runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    report = export_bundle(runs["linear"].best, tmp_path / "out", formats, precision)
    lines = [line for line in report.table().splitlines() if "is for GPUs here: on a CPU without AVX512" in line]
    assert len(lines) == count
    assert all(line.startswith("note: ") for line in lines)
