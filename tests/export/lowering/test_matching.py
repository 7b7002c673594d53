"""The lowered similarity matching head against the head, in every format, and what is refused."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import RECIPE
from forms import Together, to_onnx
from matching_heads import SIZE, random_matching
from oracles import matching as oracle
from torch import nn

from tnn_export import ExportError, ParityError, export_bundle, lower_head
from tnn_export.__main__ import main as tnn_export
from tnn_export.lowering import lower_maps, matching
from tnn_runtime import Classifier
from tnn_runtime.engines import build_engine, find_tensorrt
from tnn_train import ImageData, MatchingConfig, ModelConfig, load_checkpoint, train

FORMS = oracle.forms(units=5, tau=0.5, objective=1.0)
USUAL = [replace(config, tolerance=1e-2, iterations=1000) for config in oracle.forms(units=5, tau=0.5, objective=1.0)]


@pytest.mark.parametrize("config", FORMS, ids=oracle.name)
def test_lowered_equals_the_definition(config: MatchingConfig) -> None:
    head, x = random_matching(config)
    with torch.no_grad():
        logits, parts = lower_head(head)(x), lower_head(head, parts=True)(x)
    np.testing.assert_allclose(logits, oracle.logits(head, x.double().numpy()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(parts["units"], oracle.activities(head, x.double().numpy()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["logits"], logits)


def test_every_form_runs_in_onnx_torchscript_and_pt2(tmp_path: Path) -> None:
    heads = [random_matching(config, seed)[0] for seed, config in enumerate(USUAL)]
    lowered = Together([lower_head(head) for head in heads]).eval()
    session = onnxruntime.InferenceSession(
        to_onnx(lowered, tmp_path / "heads.onnx", SIZE), providers=["CPUExecutionProvider"]
    )
    exported = torch.export.export(
        lowered, (torch.zeros(2, SIZE),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    ).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.freeze(torch.jit.script(lowered))
    torch.manual_seed(0)
    for size in (1, 3, 6):
        x = 3 * torch.randn(size, SIZE) + 1
        with torch.no_grad():
            expected = [head(x).numpy() for head in heads]
            for found in (session.run(None, {"x": x.numpy()}), scripted(x), exported(x)):
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(np.asarray(one), other, rtol=2e-5, atol=2e-5)


def test_a_linear_circuit_is_one_product_and_another_is_unrolled(tmp_path: Path) -> None:
    linear, _ = random_matching(MatchingConfig(5, "linear"))
    graph = onnx.load(to_onnx(lower_head(linear), tmp_path / "linear.onnx", SIZE)).graph
    assert [node.op_type for node in graph.node] == ["Gemm"]
    other, _ = random_matching(MatchingConfig(5))
    graph = onnx.load(to_onnx(lower_head(other), tmp_path / "other.onnx", SIZE)).graph
    count = int(other.settled)
    assert Counter(node.op_type for node in graph.node) == Counter(Gemm=count + 1, Relu=count)


def test_tensorrt_parses_and_builds_both(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed on this system")
    heads = [random_matching(MatchingConfig(5, activation))[0] for activation in ("linear", "non-negative")]
    model = to_onnx(Together([lower_head(head) for head in heads]), tmp_path / "heads.onnx", SIZE)
    library = find_tensorrt("tensorrt_rtx")
    engine = build_engine(model, tmp_path, input_name="x", shape=(SIZE,), batch=(1, 8, 64), library=library)
    assert engine.stat().st_size > 1000


def test_feature_maps_are_those_of_a_linear_circuit(tmp_path: Path) -> None:
    head, x = random_matching(MatchingConfig(5, "linear"))
    maps = torch.randn(len(x), SIZE, 3, 2)
    maps += (x - maps.mean((2, 3)))[:, :, None, None]
    with torch.no_grad():
        found = lower_maps(head)(maps, x)
        torch.testing.assert_close(found, head.feature_maps(maps, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean((2, 3)), oracle.activities(head, x.double().numpy()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportError, match="a non-negative circuit has no feature maps: .*; leave the output"):
        lower_maps(random_matching(MatchingConfig(5))[0])


def test_circuits_that_do_not_settle_are_refused() -> None:
    head, _ = random_matching(MatchingConfig(5))
    head.config = MatchingConfig(5, step=1.0)
    with torch.no_grad():
        head.lateral.copy_(3 * torch.eye(5))
        with pytest.raises(ExportError, match="diverges with the step 1, .* is 3.1; expected a step below 0.645"):
            lower_head(head)
        head.lateral.copy_(torch.diag(torch.tensor([1.0, 1, 1, 1, -0.5])))
        for activation in ("linear", "non-negative"):
            head.config = MatchingConfig(5, activation)
            with pytest.raises(ExportError, match="not positive definite, their smallest eigenvalue is -0.4"):
                lower_head(head)
        head.config = MatchingConfig(5, "linear", leak=0.0)
        head.lateral.copy_(torch.diag(torch.tensor([1e6, 1, 1, 1, 1.0])))
        with pytest.raises(ExportError, match=r"have the condition number 1e\+06; a linear circuit can be"):
            lower_head(head)
        head.encoder[0, 0] = float("nan")
        with pytest.raises(ExportError, match="a weight of the matching head is no finite number"):
            lower_head(head)


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with a non-negative and with a linear circuit."""
    folder = tmp_path_factory.mktemp("matching")
    return {
        activation: train(
            data,
            folder / activation,
            ModelConfig("tiny", "matching", matching=MatchingConfig(8, activation, tolerance=0.03)),
            RECIPE,
        ).best
        for activation in ("non-negative", "linear")
    }


@pytest.mark.parametrize("activation", ["non-negative", "linear"])
def test_a_bundle_is_proven_and_answers_as_the_checkpoint(
    activation: str, trained: dict[str, Path], data: ImageData, photos: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    outputs = ["units", *(["feature_maps"] if activation == "linear" else [])]
    formats = ["onnx", "torchscript"] if activation == "non-negative" else ["onnx", "torchscript", "pt2"]
    assert tnn_export([str(trained[activation]), "-o", str(bundle), "--formats", *formats, "--outputs", *outputs]) == 0
    head = load_checkpoint(trained[activation]).model.head
    with Classifier.load(bundle, "cpu") as classifier:
        x, logits = classifier.embed(data.test.pixels), classifier.logits(data.test.pixels)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=8, maps=activation == "linear")
        exemplars = classifier.exemplars(feature=0)
    np.testing.assert_allclose(logits, oracle.logits(head, x.astype(np.float64)), rtol=5e-2, atol=5e-2)
    for row, explanations in zip(logits, explained, strict=True):
        for one in explanations:
            assert one.logit == pytest.approx(row[one.index], rel=1e-4, abs=1e-4)
    assert len(exemplars.images) == len(exemplars.values)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(precision: str, trained: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    options = [
        "--precision",
        precision,
        "--formats",
        "onnx",
        *(["--images", str(photos)] if precision == "int8" else []),
    ]
    assert tnn_export([str(trained["non-negative"]), "-o", str(tmp_path / "bundle"), *options]) == 0


class Straight(matching._Unrolled):
    """A circuit that has lost its ReLU on the way, as a trace of it does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drive = self.drive(x)
        y = drive
        for _ in range(self.more):
            y = torch.addmm(drive, y, self.kept)
        return y


def test_a_lost_relu_is_found(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_Unrolled", Straight)
    with pytest.raises(ParityError, match="differs from eager PyTorch"):
        export_bundle(trained["non-negative"], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_lost_iteration_is_found(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = matching._Unrolled.__init__

    def shorter(module: nn.Module, head: nn.Module) -> None:
        init(module, head)
        module.more -= 3

    monkeypatch.setattr(matching._Unrolled, "__init__", shorter)
    with pytest.raises(ParityError, match="differs from eager PyTorch"):
        export_bundle(trained["non-negative"], tmp_path / "bundle")


def test_a_class_is_added_and_units_are_left_out(trained: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    source = str(trained["non-negative"])
    assert tnn_export(["edit", source, "-o", str(tmp_path / "edited"), "--drop-features", "0", "2"]) == 0
    head = load_checkpoint(tmp_path / "edited").model.head
    assert not head.classifier.weight[:, [0, 2]].any()
    new = ["--name", "owl", "--images", str(photos / "cat")]
    assert tnn_export(["add-class", source, *new, "-o", str(tmp_path / "larger")]) == 0
    assert load_checkpoint(tmp_path / "larger").model.head.num_classes == 3
