"""Families of heads that nothing but their own files and the tables know do all that the others do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from torch import Tensor, nn
from toy.explainer import NearestMeanExplainer
from toy.head import NearestMeanHead
from toy.lowering import LoweredBestPlace, lower_nearest_mean
from toy.map_head import BestPlaceHead

from tnn_export.__main__ import main as tnn_export
from tnn_export.lowering import LOWERINGS
from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_runtime.explain import EXPLAINERS
from tnn_train import ImageData, ModelConfig, load_checkpoint, train
from tnn_train.__main__ import main as tnn_train
from tnn_train.heads import HEADS
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.image_model import Normalize

NAME = "nearest-mean"


class PooledNet(nn.Module):
    """A small backbone with a map, whose mean over all places is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture(autouse=True, scope="module")
def tables() -> None:
    """The families are entered once in the table of each package."""
    with pytest.MonkeyPatch.context() as patch:
        for head in (NearestMeanHead, BestPlaceHead):
            patch.setitem(HEADS, head.family, head)
        patch.setitem(LOWERINGS, NAME, lower_nearest_mean)
        patch.setitem(LOWERINGS, BestPlaceHead.family, LoweredBestPlace)
        patch.setitem(EXPLAINERS, NAME, NearestMeanExplainer)
        patch.setitem(BACKBONES, "pooled", PooledNet)
        yield


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; read only."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    options = ["--data", str(photos), "--backbone", "tiny", "--epochs", "3", "--learning-rate", "0.01"]
    assert tnn_train([*options, "--head", NAME, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Its bundle; read only."""
    folder = run.parent / "bundle"
    options = ["--formats", "onnx", "torchscript", "pt2", "--outputs", "cosines", "probabilities"]
    assert tnn_export([str(run / "best"), "-o", str(folder), *options]) == 0
    return folder


def test_it_starts_from_the_data_and_learns(run: Path, data: ImageData, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["config"]["model"]["head"] == NAME
    assert results["test_accuracy"] >= 0.8
    cache = str(tmp_path / "cache")
    recipe = replace(RECIPE, epochs=1, learning_rate=0.0, freeze_backbone=True, embedding_cache=cache)
    model = load_checkpoint(train(data, tmp_path / "start", ModelConfig("tiny", NAME), recipe).best).model
    with torch.no_grad():
        x = model.backbone(Normalize(data.preprocessing)(torch.from_numpy(data.train.pixels)))
    for label, mean in enumerate(model.head.means):
        torch.testing.assert_close(mean, x[data.train.labels == label].mean(0), rtol=1e-4, atol=1e-5)


def test_its_penalty_is_part_of_the_loss(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, epochs=1, learning_rate=0.0)
    losses = []
    for penalty in (0.0, 100.0):
        monkeypatch.setattr(NearestMeanHead, "penalty", lambda head, penalty=penalty: penalty)
        losses.append(train(data, tmp_path / str(penalty), ModelConfig("tiny", NAME), recipe).history[0]["train_loss"])
    assert losses[1] - losses[0] == pytest.approx(100, rel=1e-5)


def test_its_report_says_what_it_says_of_itself(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="class-means">Class means</h2>' in page
    assert '<a href="#class-means">Class means</a>' in page
    assert "Mean of cat" in page
    assert page.count('alt="training image') == 2 * 3
    assert "rototype" not in page


def test_its_export_is_proven_with_its_evidence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [output["name"] for output in manifest["outputs"]] == ["logits", "embedding", "probabilities", "cosines"]
    assert set(manifest["parity"]) == {"lowered head", "onnx", "torchscript", "pt2"}
    assert manifest["reject"]["score"] == "logit"
    assert "to the mean of each class" in (bundle / "README.md").read_text()
    capsys.readouterr()
    assert tnn_export(["check", str(bundle)]) == 0
    assert capsys.readouterr().out.count("passed") == 3


def test_a_wrong_lowering_does_not_pass(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(head: NearestMeanHead) -> torch.nn.Module:
        lowered = lower_nearest_mean(head)
        lowered.means *= 1.001
        return lowered

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOWERINGS, NAME, wrong)
        assert tnn_export([str(run / "best"), "-o", str(tmp_path / "wrong")]) == 1
    assert "differs from eager PyTorch, so nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_its_explanations_add_up_to_the_logits(bundle: Path, run: Path, data: ImageData) -> None:
    head = load_checkpoint(run / "best").model.head
    with Classifier.load(bundle, "cpu") as classifier:
        logits, x = classifier.logits(data.test.pixels), classifier.embed(data.test.pixels).astype(np.float64)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=x.shape[1])
    means = head.means.detach().double().numpy()
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, means)]
    expected = head.scale.item() * unit[0] @ unit[1].T
    for number, explanations in enumerate(explained):
        for e in explanations:
            assert e.logit == pytest.approx(logits[number, e.index], rel=1e-4, abs=1e-4)
            assert e.logit == pytest.approx(expected[number, e.index], rel=1e-6)
            assert e.logit == pytest.approx(sum(part.sign * part.value for part in e.parts) + e.bias, rel=1e-9)
            gone = e.features[0].index
            term = head.scale.item() * unit[0][number, gone] * unit[1][e.index, gone]
            assert e.without([gone]) == pytest.approx(e.logit - term, rel=1e-6)


def test_without_an_explainer_it_still_classifies(bundle: Path, data: ImageData) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(EXPLAINERS, NAME)
        with Classifier.load(bundle, "cpu") as classifier:
            assert len(classifier.predict(data.test.pixels)) == len(data.test)
            with pytest.raises(UsageError, match=f"{NAME} head"):
                classifier.explain(data.test.pixels)


def test_it_is_served_and_timed(bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tnn_runtime(["predict", str(bundle), str(photos / "cat" / "0.png"), "--format", "csv"]) == 0
    assert ",1,cat," in capsys.readouterr().out
    pair = tmp_path / "pair"
    options = ["--backbone", "tiny", "--classes", "4", "--size", "16", "--formats", "onnx", "-o", str(pair)]
    assert tnn_export(["pair", "--head", NAME, *options]) == 0
    assert {path.name for path in pair.iterdir()} == {NAME, "linear", "pair.json"}
    quick = ["--batch", "1", "--threads", "1", "--processes", "1", "--blocks", "2"]
    assert tnn_runtime(["bench", str(pair / NAME), str(pair / "linear"), *quick]) == 0


def test_it_is_swept_and_compared(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(photos), "--out", str(tmp_path / "sweep"), "--seeds", "1", "--backbone", "tiny"]
    assert tnn_train(["sweep", *options, "--heads", "linear", NAME, "--epochs", "1"]) == 0
    assert f"head={NAME}" in capsys.readouterr().out


def test_a_family_that_takes_maps(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    options = ["--data", str(photos), "--backbone", "pooled", "--epochs", "1"]
    assert tnn_train([*options, "--head", BestPlaceHead.family, "--out", str(run)]) == 0
    frozen = ["--weights", str(run / "best"), "--freeze-backbone", "--embedding-cache", str(tmp_path / "cache")]
    assert tnn_train([*options, *frozen, "--head", BestPlaceHead.family, "--out", str(tmp_path / "frozen")]) == 0
    assert tnn_export([str(run / "best"), "-o", str(bundle)]) == 0
    assert tnn_export(["check", str(bundle)]) == 0
    head = load_checkpoint(run / "best").model.head
    with Classifier.load(bundle, "cpu") as classifier:
        image = photos / "dog" / "0.png"
        maps, logits = classifier.embed([image]), classifier.logits([image])
        assert maps.shape == (1, 12, 8, 8)
        assert classifier.embed([]).shape == (0, 12, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), head(torch.from_numpy(maps)), rtol=1e-4, atol=1e-4)
    other = ["--backbone", "vgg11", "--image-size", "64", "--head", BestPlaceHead.family]
    assert tnn_train([*options[:2], *other, "--out", str(tmp_path / "other")]) == 1
    assert "has none (its last layers mix the places of an image" in capsys.readouterr().err
