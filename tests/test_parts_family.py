"""Parts heads from photos to explanations: trained, projected, exported, proven, explained, edited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from torch import Tensor, nn

from tnn_export.__main__ import main as tnn_export
from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_train import ImageData, ModelConfig, PartsConfig, TrainConfig, evaluate, load_checkpoint, train
from tnn_train.__main__ import main as tnn_train
from tnn_train.heads.description import Sample
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.exemplars import find_exemplars
from tnn_train.model.image_model import Normalize

KINDS = {
    "protopnet": PartsConfig(per_class=2, depth=6),
    "linear": PartsConfig(per_class=2, add_on=False, similarity="linear", cluster=0.1, separation=0.01),
    "pipnet": PartsConfig("pipnet", num_parts=8, fires_above=0.2),
}


class PooledNet(nn.Module):
    """A small backbone with a map of 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 7, padding=3)
        self.conv = nn.Conv2d(16, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.relu(self.norm(self.conv(self.relu(self.wide(x)))))).flatten(1))


@pytest.fixture(autouse=True, scope="module")
def backbone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "parted", PooledNet)
        yield


def model_of(kind: str) -> ModelConfig:
    return ModelConfig("parted", head="parts", parts=KINDS[kind])


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind; read only."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in KINDS:
        train(data, folder / kind, model_of(kind), replace(RECIPE, epochs=8, learning_rate=0.03))
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def exported(trained: dict[str, Path]) -> dict[str, Path]:
    """Their bundles; read only."""
    for kind, run in trained.items():
        formats = ["onnx", "torchscript", "pt2"] if kind == "protopnet" else ["onnx"]
        options = ["--formats", *formats, "--outputs", "similarities", "feature_maps", "--coverage", "0.7"]
        assert tnn_export([str(run / "best"), "-o", str(run.parent / f"{kind}-bundle"), *options]) == 0
    return {kind: run.parent / f"{kind}-bundle" for kind, run in trained.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_tells_what_its_end_did(kind: str, trained: dict[str, Path], data: ImageData) -> None:
    results = json.loads((trained[kind] / "results.json").read_text())
    assert results["test_accuracy"] >= 0.8
    assert results["unfinished_val_accuracy"] is not None
    checkpoint = load_checkpoint(trained[kind] / "best")
    assert evaluate(checkpoint.model, data.val).accuracy == results["val_accuracy"]
    head = checkpoint.model.head
    assert head.steps[2] >= 0.8
    with torch.no_grad():
        embed = lambda: checkpoint.model.backbone(Normalize(data.preprocessing)(torch.from_numpy(data.train.sample(9))))  # noqa: E731
        for sample in (None, Sample(data.train.labels[:9], data.class_names, embed)):
            (section,) = head.describe(sample)
            told = repr(section)
            assert "after the fit of the last layer alone" in told
            assert ("after each prototype became a patch" in told) == (kind != "pipnet")
            assert ("From training image" in told) == (sample is not None)


@pytest.mark.parametrize("kind", ["protopnet", "linear"])
def test_a_prototype_is_the_very_patch_that_it_says(kind: str, trained: dict[str, Path], data: ImageData) -> None:
    checkpoint = load_checkpoint(trained[kind] / "best")
    head = checkpoint.model.head
    pixels = torch.from_numpy(data.train.sample(len(data.train)))
    with torch.no_grad():
        x = checkpoint.model.backbone(Normalize(data.preprocessing)(pixels))
        encoded = head.detector.encode(x)
    for prototype, (image, row, column) in enumerate(head.sources.tolist()):
        assert data.train.labels[image] == head.detector.owners[prototype]
        torch.testing.assert_close(head.detector.prototypes[prototype], encoded[image, :, row, column])


@pytest.mark.parametrize("kind", KINDS)
def test_its_first_picture_is_where_it_comes_from(kind: str, trained: dict[str, Path], data: ImageData) -> None:
    checkpoint = load_checkpoint(trained[kind] / "best")
    head, gallery = checkpoint.model.head, checkpoint.exemplars
    assert gallery is not None
    shown = 0
    for part, (image, row, column) in enumerate(head.sources.tolist()):
        for name in ("feature", "prototype"):
            found = gallery.find(name, part)
            if found is None or image < 0:
                continue
            assert np.array_equal(found.images[0], data.train.decoded(image))
            top, left, bottom, right = found.boxes[0]  # type: ignore[index]
            assert top <= 2 * row < bottom
            assert left <= 2 * column < right
            shown += 1
    assert shown >= 4


def test_sources_are_shown_though_they_are_not_looked_at(
    trained: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(trained["protopnet"] / "best")
    read, labels = (lambda places: data.train.sample(len(data.train))[places]), data.train.labels
    monkeypatch.setattr("tnn_train.model.exemplars.LOOKED_AT", 2)
    for are_those in (True, False):
        found = find_exemplars(
            checkpoint.model, data.preprocessing, read, labels, data.class_names, are_those_of_training=are_those
        )
        assert found is not None
        assert (len(found.pictures) > 2) == are_those


@pytest.mark.parametrize("kind", KINDS)
def test_its_bundle_is_proven_and_explains(
    kind: str, exported: dict[str, Path], trained: dict[str, Path], data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported[kind]
    manifest = json.loads((bundle / "manifest.json").read_text())
    outputs = {output["name"]: output["shape"] for output in manifest["outputs"]}
    parts = 8 if kind == "pipnet" else 4
    assert outputs == {
        "logits": [None, 2],
        "embedding": [None, 12, 8, 8],
        "feature_maps": [None, parts, 8, 8],
        "similarities": [None, parts],
    }
    assert manifest["reject"]["score"] == "logit"
    capsys.readouterr()
    assert tnn_export(["check", str(bundle)]) == 0
    assert "FAILED" not in capsys.readouterr().out
    head = load_checkpoint(trained[kind] / "best").model.head
    with Classifier.load(bundle, "cpu") as classifier:
        images = data.test.sample(6)
        logits, maps = classifier.logits(images), torch.from_numpy(classifier.embed(images))
        explained = classifier.explain(images, top_k=2, num_features=parts, maps=True)
        best = explained[0][0]
        pictures = classifier.exemplars(feature=best.features[0].index)
    with torch.no_grad():
        weight, places = head.arrays()["weight"].numpy(), head.feature_maps(maps, maps).numpy()
    assert pictures.boxes is not None
    for image, explanations in enumerate(explained):
        for e in explanations:
            assert e.logit == pytest.approx(logits[image, e.index], rel=1e-4, abs=1e-4)
            assert e.maps is not None
            for feature, found in zip(e.features, e.maps.features, strict=True):
                expected = weight[e.index, feature.index] * places[image, feature.index]
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_it_is_drawn(exported: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    image = str(photos / "cat" / "0.png")
    for name in ("why.html", "why.png"):
        assert tnn_runtime(["explain", str(exported["protopnet"]), image, "-o", str(tmp_path / name)]) == 0
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "of cat" in page
    assert "Seen in" in page


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions(precision: str, trained: dict[str, Path], tmp_path: Path) -> None:
    options = ["--formats", "onnx", "--precision", precision, "-o", str(tmp_path / "bundle")]
    assert tnn_export([str(trained["pipnet"] / "best"), *options]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_edited_and_audited(
    kind: str, trained: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, dropped, larger = str(trained[kind] / "best"), tmp_path / "dropped", tmp_path / "larger"
    assert tnn_export(["edit", best, "-o", str(dropped), "--drop-features", "1", "--rename-feature", "0", "bar"]) == 0
    head = load_checkpoint(dropped).model.head
    assert not head.weight[:, 1].any()
    assert head.feature_names(("cat", "dog"))[0] == "bar"
    assert tnn_export(["edit", best, "-o", str(tmp_path / "no"), "--drop-prototypes", "1"]) == 1
    assert "the prototypes of a parts head are its features" in capsys.readouterr().err
    wolves = ["--images", str(photos / "dog"), "--name", "wolf"]
    assert tnn_export(["add-class", best, *wolves, "-o", str(larger)]) == 0
    assert tnn_export([str(larger), "-o", str(tmp_path / "bundle"), "--formats", "onnx"]) == 0
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        assert classifier.class_names == ("cat", "dog", "wolf")
        assert len(classifier.explain([photos / "dog" / "0.png"])[0]) == 3
    measures = ["features", "explanations", "shifts", "pixels", "prototypes"]
    assert tnn_train(["audit", str(trained[kind]), "--measures", *measures, "--images", "6"]) == 0


@pytest.mark.parametrize("kind", ["protopnet", "pipnet"])
@pytest.mark.parametrize(
    "options",
    [
        {"freeze_backbone": True, "augment": None},
        {"ema_decay": 0.5, "accumulate": 2, "class_weights": "balanced"},
        {"precision": "bf16", "label_smoothing": 0.1, "augment": ("crop", "flip")},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_way_to_train(kind: str, options: dict[str, object], data: ImageData, tmp_path: Path) -> None:
    cache = {"embedding_cache": str(tmp_path / "cache")} if "freeze_backbone" in options else {}
    recipe = replace(RECIPE, epochs=2, **options, **cache)  # type: ignore[arg-type]
    result = train(data, tmp_path / "run", model_of(kind), recipe)
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    assert all(0 <= row["train_accuracy"] <= 1 for row in result.history)


def test_views_of_an_image_are_those_of_an_uninterrupted_training(data: ImageData, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, augment=("crop",), exemplars=0)
    whole = train(data, tmp_path / "whole", model_of("pipnet"), recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tnn_train.training.trainer.Trainer.is_finished", property(lambda trainer: trainer.epoch >= 1))
        train(data, tmp_path / "run", model_of("pipnet"), recipe)
    resumed = train(data, tmp_path / "run", model_of("pipnet"), recipe, resume=True)
    for row, other in zip(whole.history, resumed.history, strict=True):
        assert row["train_loss"] == other["train_loss"]


@pytest.mark.parametrize(
    ("model", "recipe", "reason"),
    [
        (
            ModelConfig("vgg11", head="parts", stem="imagenet"),
            TrainConfig(),
            "the head takes maps, and backbone vgg11 has none",
        ),
        (
            ModelConfig("parted", head="parts", parts=PartsConfig(depth=13)),
            TrainConfig(),
            "depth is 13, and the backbone's map has 12 values at each place",
        ),
        (
            ModelConfig("parted", head="parts", parts=PartsConfig("pipnet")),
            TrainConfig(augment=("mixup",)),
            "compares views of each training image, which augment mixup blends with others; leave mixup out",
        ),
        (
            ModelConfig("parted", head="parts", parts=PartsConfig("pipnet", alignment=1.0)),
            TrainConfig(freeze_backbone=True),
            "alignment is 1, which compares two views of an image, and a frozen backbone sees but one",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    model: ModelConfig, recipe: TrainConfig, reason: str, data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        train(data, tmp_path / "run", model, recipe)
    assert not (tmp_path / "run").exists()


def test_more_prototypes_than_patches(data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", data.config.source, "--backbone", "parted", "--head", "parts", "--epochs", "1"]
    assert tnn_train([*options, "--parts.per-class", "5000", "--out", str(tmp_path / "run")]) == 1
    assert "patches in its training images for 5000 prototypes; choose fewer" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_it_is_swept_paired_and_timed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(photos), "--out", str(tmp_path / "sweep"), "--seeds", "1", "--backbone", "parted"]
    assert tnn_train(["sweep", *options, "--heads", "linear", "parts", "--epochs", "1", "--parts.per-class", "2"]) == 0
    assert "head=parts" in capsys.readouterr().out
    pair = ["--backbone", "parted", "--classes", "3", "--size", "16", "--formats", "onnx", "-o", str(tmp_path / "pair")]
    assert tnn_export(["pair", "--head", "parts", *pair]) == 0
    quick = ["--batch", "1", "--threads", "1", "--processes", "1", "--blocks", "2"]
    assert tnn_runtime(["bench", str(tmp_path / "pair" / "parts"), str(tmp_path / "pair" / "linear"), *quick]) == 0
