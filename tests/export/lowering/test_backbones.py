"""Backbones that export, and those that cannot, which are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shallow import SHALLOW
from torch import Tensor, nn

from tnn_export import ExportError, ExportOptions, export_bundle
from tnn_export.bundle.inspect import inspect_bundle
from tnn_runtime import Classifier
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, ModelConfig, build_model
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.image_model import ImageModel, Normalize
from tnn_train.training.loop import TrainResult


def checkpoint_of(backbone: str | nn.Module, side: int) -> Checkpoint:
    """Return an untrained Tversky model whose batch norms have seen images."""
    torch.manual_seed(0)
    config = ModelConfig(backbone if isinstance(backbone, str) else "tiny", num_classes=5)
    model = build_model(config)
    if not isinstance(backbone, str):
        model = ImageModel(backbone, build_model(ModelConfig("tiny", num_classes=5)).head)
    preprocessing = Preprocessing(side, side, 3, (0.5,) * 3, (0.25,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    with torch.no_grad():
        model.train()(Normalize(preprocessing)(torch.from_numpy(images)))
    return Checkpoint(model.eval(), config, preprocessing, tuple("abcde"), images)


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["shallow", pytest.param("whole", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("backbone", "side", "formats"),
    [
        ("resnet50", 64, ("onnx", "torchscript")),
        ("vit_b_16", 224, ("onnx",)),
        ("efficientnet_b0", 64, ("onnx", "torchscript", "pt2")),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else "-".join(value),
)
def test_large_backbones_export(
    backbone: str, side: int, formats: tuple[str, ...], depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if depth == "shallow":
        monkeypatch.setitem(BACKBONES, backbone, SHALLOW[backbone])
    checkpoint = checkpoint_of(backbone, side)
    options = ExportOptions(formats, batch=BatchBounds(1, 4))
    report = export_bundle(checkpoint, tmp_path / "out", options=options)
    assert report.passed
    assert set(report.stages) == {"lowered head", *formats}
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert classifier.logits(checkpoint.samples).shape == (4, 5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SHALLOW)
def test_shallow_backbones_have_the_operators_of_whole_ones(name: str) -> None:
    found = []
    for make in (SHALLOW[name], BACKBONES[name]):
        graph = torch.export.export(make().eval(), (torch.zeros(2, 3, 224, 224),)).graph
        found.append({str(node.target) for node in graph.nodes if node.op == "call_function"})
    assert found[0] == found[1]


class Branching(nn.Module):
    """Control flow that hangs on data."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3)).repeat(1, 8)
        if bool((x.sum() > 0).item()):
            mean = 2 * mean
        return mean


class Decomposing(nn.Module):
    """Something that ONNX has no operators for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x[:, :, :8, :8]).flatten(1)


class Untyped(nn.Module):
    """Something that TorchScript does not compile, and torch.export does."""

    def forward(self, x: Tensor, *rest: Tensor, **options: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3))] * 8, dim=1)


@pytest.mark.parametrize(
    ("backbone", "fails", "message", "works"),
    [
        (Branching, "onnx", "torch.export cannot follow the model .* rewrite it with torch.where", "torchscript"),
        (Decomposing, "onnx", "ONNX has no operators for the model .*eig", "pt2"),
        (Untyped, "torchscript", "TorchScript cannot compile the model", "onnx"),
    ],
)
def test_what_a_format_cannot_have_is_named(
    backbone: type[nn.Module], fails: str, message: str, works: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(backbone(), 16)
    with pytest.raises(ExportError, match=message) as caught:
        export_bundle(checkpoint, tmp_path / "out", [fails])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    options = ExportOptions((works,), batch=BatchBounds(1, 4))
    if backbone is not Branching:
        assert export_bundle(checkpoint, tmp_path / "out", options=options).passed


def test_a_full_disk_is_one_line_and_leaves_nothing(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    program = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import conftest; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "from tnn_export.__main__ import main; "
        "print(*(main([*sys.argv[2:], '--formats', form]) for form in ('onnx', 'torchscript', 'pt2')))"
    )
    arguments = [str(Path(__file__).parents[2]), str(runs["tversky"].best), "-o", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "1 1 1", result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("tnn-export: error: ")]
    assert len(errors) == 3
    assert all("the system refused a file" in error for error in errors), result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_resnet_is_folded_to_what_it_needs(tmp_path: Path) -> None:
    options = ExportOptions(("onnx",), batch=BatchBounds(1, 4))
    export_bundle(checkpoint_of("resnet18", 32), tmp_path / "out", options=options)
    # The backbone: 20 convolutions, 17 ReLUs, 8 sums, the mean; before it cast, transposition and normalisation.
    # The head: projection, ReLU and the product with the prototypes, and a block of the sums of minima.
    assert inspect_bundle(tmp_path / "out")["onnx"]["operators"] == {
        "Conv": 20,
        "Relu": 17 + 1,
        "Add": 8 + 1 + 1,
        "Cast": 1,
        "Transpose": 1,
        "Mul": 1 + 1,
        "ReduceMean": 1,
        "Reshape": 1,
        "Gemm": 2,
        "Unsqueeze": 1,
        "Min": 1,
        "ReduceSum": 1,
    }
