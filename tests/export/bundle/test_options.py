"""Formats, precisions, outputs and batch sizes, each through a whole export."""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Once

from tnn_export import ExportError, ExportOptions, check_bundle, export_bundle
from tnn_export.bundle.inspect import inspect_bundle
from tnn_export.formats import FORMATS
from tnn_export.formats import onnx as onnx_format
from tnn_export.lowering.graph import extra_outputs
from tnn_runtime import Classifier, Manifest, ProviderUnavailable, UsageError
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_train import ImageData, load_checkpoint
from tnn_train.training.loop import TrainResult

PRECISION_FORMATS = {
    "fp32": ("onnx", "torchscript", "pt2"),
    "fp16": ("onnx", "torchscript", "pt2"),
    "bf16": ("torchscript", "pt2"),
    "int8": ("onnx",),
}


@pytest.fixture(scope="module")
def exported(runs: dict[str, TrainResult], once: Once) -> dict[str, Path]:
    """A bundle of each precision, in every format that has it, with every output; read only."""

    def make(folder: Path) -> dict[str, Path]:
        for precision, formats in PRECISION_FORMATS.items():
            options = ExportOptions(formats, precision, extra_outputs("tversky"), BatchBounds(1, 16))
            report = export_bundle(runs["jumping"].best, folder / precision, options=options)
            assert report.passed
            assert tuple(report.stages) == ("lowered head", *formats)
            assert all(stage.precision == precision for stage in list(report.stages.values())[1:])
        return {precision: folder / precision for precision in PRECISION_FORMATS}

    return once("precisions", make)


def test_precisions_and_formats_exclude_each_other_only_where_it_is_said() -> None:
    for precision, formats in PRECISION_FORMATS.items():
        assert {name for name, form in FORMATS.items() if precision not in form.refused} - {"tensorrt"} == set(formats)


@pytest.mark.parametrize("precision", PRECISION_FORMATS)
def test_artifacts_run_with_their_libraries_alone(
    precision: str, exported: dict[str, Path], runs: dict[str, TrainResult], data: ImageData
) -> None:
    manifest, folder = Manifest.read(exported[precision])
    names = ["logits", "embedding", *extra_outputs("tversky")]
    assert [spec.name for spec in manifest.outputs] == names
    images = data.test.pixels
    found = {}
    if "model.onnx" in manifest.files:
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == names
        assert {output.type for output in session.get_outputs()} == {"tensor(float)"}
        found["onnx"] = dict(zip(names, session.run(None, {"images": images}), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = {
            name: module
            for name, load in (
                ("model.ts", lambda path: torch.jit.load(path)),
                ("model.pt2", lambda path: torch.export.load(path).module()),
            )
            if name in manifest.files
            for module in [load(str(folder / name))]
        }
    for name, module in modules.items():
        with torch.inference_mode():
            found[name] = {key: value.numpy() for key, value in module(torch.from_numpy(images)).items()}
        assert list(found[name]) == names
    eager = load_checkpoint(runs["jumping"].best).model
    for outputs in found.values():
        embedding = torch.from_numpy(outputs["embedding"])
        with torch.no_grad():
            np.testing.assert_allclose(outputs["logits"], eager.head(embedding).numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
        parts = outputs["common"] - outputs["input_only"] - outputs["prototype_only"]
        np.testing.assert_allclose(outputs["similarities"], parts, rtol=1e-4, atol=1e-4)
        assert all(value.dtype == np.float32 for value in outputs.values())


@pytest.mark.parametrize("precision", PRECISION_FORMATS)
def test_only_the_backbone_leaves_float32(precision: str, exported: dict[str, Path]) -> None:
    folder = exported[precision]
    if precision == "bf16":
        with zipfile.ZipFile(folder / "model.pt2") as archive:
            assert not any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
        return
    graph = onnx.load(folder / "model.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}
    makers = {name: node for node in graph.node for name in node.output}
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    weight = convolution.input[1]
    assert types[makers[weight].input[0] if weight in makers else weight] == kinds[precision]
    heads = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    assert len(heads) == 2
    assert all(types[node.input[1]] == onnx.TensorProto.FLOAT for node in heads)


def test_the_runtime_serves_every_precision(exported: dict[str, Path], data: ImageData) -> None:
    for precision in ("fp32", "fp16", "int8"):
        with Classifier.load(exported[precision], "cpu") as classifier:
            assert classifier.info["precision"] == precision
            assert classifier.info["max_batch_size"] == 16
            logits = classifier.logits(np.concatenate([data.test.pixels] * 5))
            assert logits.shape == (40, 2)
            assert (logits[:8].argmax(1) == data.test.labels).all()
            (explanation,) = classifier.explain(data.test.pixels[:1], top_k=1)[0]
            assert explanation.logit == pytest.approx(logits[0].max(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("precision", PRECISION_FORMATS)
def test_a_bundle_is_checked_again(precision: str, exported: dict[str, Path], request: pytest.FixtureRequest) -> None:
    if precision == "fp32":
        request.getfixturevalue("fresh_processes")
    report = check_bundle(exported[precision])
    manifest, _ = Manifest.read(exported[precision])
    assert report.passed
    assert set(report.stages) == set(PRECISION_FORMATS[precision])
    for name, stage in report.stages.items():
        again = json.loads(json.dumps(dataclasses.asdict(stage)))
        assert again == manifest.parity[name]


def test_a_check_on_a_device_that_is_missing_or_unknown(exported: dict[str, Path]) -> None:
    for name in ("tpu", "auto", "cpu:0", "cuda:", "cuda:x"):
        with pytest.raises(UsageError, match=f"unknown device '{name}'; choose cpu, cuda or cuda:N"):
            check_bundle(exported["fp32"], name)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ProviderUnavailable, match=r"device 'cuda' does not work here: .*; or choose device 'cpu'"):
        check_bundle(exported["fp32"], "cuda")


def test_a_changed_artifact_is_found_by_the_check(exported: dict[str, Path], tmp_path: Path) -> None:
    manifest, folder = Manifest.read(exported["fp32"])
    model = onnx.load(folder / "model.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "read", lambda bundle, public_key: (manifest, Path(bundle)))
        for path in folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
        )
        onnx.save(model, tmp_path / "model.onnx")
        report = check_bundle(tmp_path)
    assert not report.stages["onnx"].passed
    assert report.stages["pt2"].passed


def test_the_graph_says_what_it_is(exported: dict[str, Path]) -> None:
    model = onnx.load(exported["int8"] / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    manifest, _ = Manifest.read(exported["int8"])
    assert json.loads(metadata["tnn.class_names"]) == ["cat", "dog"]
    assert metadata["tnn.precision"] == '"int8"'
    assert json.loads(metadata["tnn.preprocessing"])["height"] == 16
    assert json.loads(metadata["tnn.outputs"])["embedding"] == ["float32", None, 24]
    assert json.loads(metadata["tnn.model"]) == json.loads(json.dumps(manifest.model))


@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(opset: int, runs: dict[str, TrainResult], tmp_path: Path) -> None:
    export_bundle(runs["linear"].best, tmp_path / "out", options=ExportOptions(("onnx",), opset=opset))
    assert inspect_bundle(tmp_path / "out")["onnx"]["opset"] == {"ai.onnx": opset}


@pytest.mark.parametrize("bounds", [BatchBounds(3, 3), BatchBounds(2, 5)])
def test_bounded_batches(bounds: BatchBounds, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path) -> None:
    formats = ("onnx", "torchscript", "pt2")
    report = export_bundle(runs["tversky"].best, tmp_path / "out", options=ExportOptions(formats, batch=bounds))
    assert {stage.batch_sizes[-1] for name, stage in report.stages.items() if name in formats} == {bounds.largest}
    images = data.test.pixels
    with torch.no_grad():
        expected = load_checkpoint(runs["tversky"].best)
    with Classifier.load(tmp_path / "out", "cpu") as classifier, Classifier.load(tmp_path / "out", "cpu") as other:
        assert classifier.info["max_batch_size"] == bounds.largest
        together = classifier.logits(images)
        assert together.shape == (8, len(expected.class_names))
        one_by_one = np.concatenate([other.logits(images[index : index + 1]) for index in range(8)])
        np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-5)


def test_large_weights_lie_beside_the_graph(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "_INLINE_BYTES", 1000)
    export_bundle(runs["tversky"].best, tmp_path / "out", formats=["onnx"])
    manifest, folder = Manifest.read(tmp_path / "out")
    assert {"model.onnx", "model.onnx.data"} <= set(manifest.files)
    assert manifest.files["model.onnx.data"]["size"] > manifest.files["model.onnx"]["size"]
    with Classifier.load(folder, "cpu") as classifier:
        assert (classifier.logits(data.test.pixels).argmax(1) == data.test.labels).all()


class TestTensorRt:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_an_engine_lies_beside_its_graph(
        self, precision: str, runs: dict[str, TrainResult], tmp_path: Path
    ) -> None:
        if torch.cuda.is_available():
            pytest.skip("with a GPU the engine is proven, see the tests of make test-gpu")
        options = ExportOptions(("tensorrt",), precision, batch=BatchBounds(1, 8))
        report = export_bundle(runs["jumping"].best, tmp_path / "out", options=options)
        manifest, _ = Manifest.read(tmp_path / "out")
        (engine,) = [name for name in manifest.files if name.endswith(".engine")]
        assert "-tensorrt_rtx-" in engine
        assert engine.removesuffix(".engine") + ".json" in manifest.files
        assert manifest.unproven == {engine: "built without a CUDA device to run it on"}
        assert f"{engine}: NOT PROVEN" in report.table()
        assert "tensorrt" not in manifest.parity
        assert manifest.parity["onnx"]["passed"]
        assert check_bundle(tmp_path / "out").passed
        Classifier.load(tmp_path / "out", "cpu").close()

    @pytest.mark.gpu
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_an_engine_is_proven(self, precision: str, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        options = ExportOptions(("tensorrt",), precision, batch=BatchBounds(1, 8))
        assert export_bundle(runs["jumping"].best, tmp_path / "out", options=options).stages["tensorrt"].passed

    def test_it_needs_a_largest_batch(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"TensorRT needs a largest batch; give one with --max-batch 64"):
            export_bundle(runs["linear"].best, tmp_path / "out", formats=["tensorrt"])
        assert list(tmp_path.iterdir()) == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"formats": ("onnx",), "precision": "bf16"}, "onnx cannot be exported in bf16: .* choose fp16"),
            ({"formats": ("pt2",), "precision": "int8"}, "pt2 cannot be exported in int8: .* choose the format onnx"),
            ({"batch": BatchBounds(0, 4)}, "got batches from 0 to 4 images; expected at least 1"),
            ({"batch": BatchBounds(5, 4)}, "got batches from 5 to 4 images; expected at least 1 to 65536, and no less"),
        ],
    )
    def test_options_that_cannot_be(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ExportError, match=message):
            ExportOptions(**options)

    def test_unknown_names(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown opset 12; choose from 13, 14"):
            ExportOptions(opset=12)
        with pytest.raises(
            UsageError, match="unknown output 'logit'; choose from probabilities, feature_maps, similarities"
        ):
            export_bundle(runs["tversky"].best, tmp_path / "out", options=ExportOptions(outputs=("logit",)))
        with pytest.raises(
            ExportError, match="a linear head has no output common; it has probabilities, feature_maps: leave common"
        ):
            export_bundle(runs["linear"].best, tmp_path / "out", options=ExportOptions(outputs=("common",)))

    def test_no_calibration_images(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        checkpoint = dataclasses.replace(load_checkpoint(runs["linear"].best), calibration=None)
        with pytest.raises(ExportError, match=r"int8 needs images .* give training images with --calibration FOLDER"):
            export_bundle(checkpoint, tmp_path / "out", ["onnx"], "int8")
        images = np.zeros((3, 8, 8, 3), np.uint8)
        with pytest.raises(ExportError, match=r"got calibration images of dtype uint8 and shape \[3, 8, 8, 3\]"):
            export_bundle(checkpoint, tmp_path / "out", ["onnx"], "int8", calibration=images)

    def test_labels_of_other_images(self, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="got 3 labels for 8 parity images"):
            export_bundle(runs["linear"].best, tmp_path / "out", images=data.test.pixels, labels=np.arange(3))
