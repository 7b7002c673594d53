"""Learning vector quantisation as its users meet it: from images to answers, with everything the house has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE

from tnn_export import ExportOptions, export_bundle
from tnn_export.__main__ import main as tnn_export
from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_train import ImageData, LvqConfig, ModelConfig, load_checkpoint, train
from tnn_train.__main__ import main as tnn_train
from tnn_train.errors import TrainingError
from tnn_train.training.trainer import Trainer

FORM = LvqConfig(prototypes=2, relevances="matrix", rank=8)
EVIDENCE = ("distances", "nearest", "confidence")


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; read only."""
    folder = tmp_path_factory.mktemp("lvq") / "run"
    words = ["--data", str(photos), "--backbone", "tiny", "--epochs", "6", "--learning-rate", "0.01"]
    words += ["--batch-size", "8", "--augment", "--lvq.prototypes", "2"]
    words += ["--lvq.relevances", "matrix", "--lvq.rank", "8"]
    assert tnn_train([*words, "--head", "lvq", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Its bundle; read only."""
    folder = run.parent / "bundle"
    words = [str(run / "best"), "-o", str(folder), "--formats", "onnx", "torchscript", "pt2"]
    assert tnn_export([*words, "--outputs", *EVIDENCE, "feature_maps"]) == 0
    return folder


def test_it_learns_and_its_report_shows_prototypes_and_relevances(run: Path) -> None:
    assert json.loads((run / "results.json").read_text())["test_accuracy"] >= 0.8
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ('<h2 id="prototypes">', "Prototype 3, class dog", '<h2 id="relevances">', '<h2 id="coverage">'):
        assert words in page
    assert "has the rank 8" in page


def test_reject_scores_measure_distances_to_the_prototypes(run: Path) -> None:
    checkpoint = load_checkpoint(run / "best")
    assert checkpoint.density is not None
    np.testing.assert_array_equal(checkpoint.density.prototypes, checkpoint.model.head.prototypes.detach())
    assert checkpoint.density.owners.tolist() == [0, 0, 1, 1]


def test_it_is_proven_in_all_formats_with_its_evidence(
    bundle: Path, data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["parity"]) == {"lowered head", "onnx", "torchscript", "pt2"}
    outputs = {output["name"]: output["shape"][1:] for output in manifest["outputs"]}
    assert {name: outputs[name] for name in EVIDENCE} == {"distances": [4], "nearest": [1], "confidence": [1]}
    assert manifest["model"]["lvq"]["start"] == "kmeans"
    assert tnn_export(["check", str(bundle)]) == 0
    assert capsys.readouterr().out.count("passed") == 3


def test_answers_are_explained_with_a_certificate_and_maps(
    bundle: Path, run: Path, data: ImageData, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = load_checkpoint(run / "best").model.head
    with Classifier.load(bundle, "cpu") as classifier:
        x = torch.from_numpy(classifier.embed(data.test.pixels))
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=24, maps=True)
    with torch.no_grad():
        logits, distances = head(x), head.distances(x)
    for number, (best, other) in enumerate(explained):
        for e in (best, other):
            assert e.logit == pytest.approx(logits[number, e.index].item(), rel=1e-4, abs=1e-4)
            assert e.maps is not None
            assert e.maps.logit.mean() + e.bias == pytest.approx(e.logit, rel=1e-3, abs=1e-3)
        assert best.prototypes[0].index == int(distances[number].argmin())
        assert best.certificate is not None
        assert best.certificate.radius() > 0
        with pytest.raises(UsageError, match="holds for l1, l2, linf"):
            best.certificate.radius("l7")
    page = tmp_path / "why.html"
    assert tnn_runtime(["explain", str(bundle), str(photos / "cat" / "0.png"), "-o", str(page)]) == 0
    for text in (capsys.readouterr().out, page.read_text(encoding="utf-8")):
        assert "Every embedding within" in text
        assert "(l2) of its own gets the same class." in text


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("form", [FORM, LvqConfig(latent=6, hidden=(8,), loss="cross-entropy", pooling="mixture")])
def test_it_is_exported_in_lower_precisions(form: LvqConfig, precision: str, data: ImageData, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", ModelConfig("tiny", "lvq", lvq=form), RECIPE)
    report = export_bundle(
        result.best, tmp_path / "out", options=ExportOptions(("onnx",), precision, (*EVIDENCE, "probabilities"))
    )
    assert report.passed
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert len(classifier.explain(data.test.pixels, top_k=1)) == len(data.test)


def test_it_is_edited_and_gets_a_class(run: Path, photos: Path, tmp_path: Path) -> None:
    edited, larger = tmp_path / "edited", tmp_path / "larger"
    best = str(run / "best")
    assert tnn_export(["edit", best, "-o", str(edited), "--drop-features", "2", "5", "--drop-prototypes", "1"]) == 0
    assert load_checkpoint(edited).config.lvq.owners == (0, 1, 1)
    assert tnn_export(["add-class", best, "--name", "bird", "--images", str(photos / "cat"), "-o", str(larger)]) == 0
    assert load_checkpoint(larger).class_names == ("bird", "cat", "dog")
    for checkpoint in (edited, larger):
        assert tnn_export([str(checkpoint), "-o", str(tmp_path / "bundle"), "--overwrite"]) == 0


def test_it_resumes_to_the_same_weights_with_blended_weighted_smoothed_images(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, augment=("mixup",), label_smoothing=0.1, class_weights="balanced", ema_decay=0.9, epochs=2)
    recipe = replace(recipe, precision="bf16", save_steps=1)
    model = ModelConfig("tiny", "lvq", lvq=replace(FORM, prototype_rate=0.5, relevance_rate=0.1))
    whole = train(data, tmp_path / "whole", model, recipe)

    def interrupted(trainer: Trainer) -> None:
        raise RuntimeError("the power fails")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", interrupted)
        with pytest.raises(RuntimeError, match="power"):
            train(data, tmp_path / "resumed", model, recipe)
    resumed = train(data, tmp_path / "resumed", model, recipe, resume=True)
    expected, found = (load_checkpoint(result.best).model.state_dict() for result in (whole, resumed))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert resumed.history[-1]["train_loss"] == whole.history[-1]["train_loss"]


def test_pixels_and_frozen_backbones_are_trained(data: ImageData, run: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2)
    pixels = train(data, tmp_path / "pixels", ModelConfig("pixels", "lvq", lvq=LvqConfig(latent=5)), recipe)
    assert export_bundle(pixels.best, tmp_path / "pixels-bundle", ("onnx",)).passed
    frozen = replace(recipe, weights=str(run / "best"), freeze_backbone=True, embedding_cache=str(tmp_path / "cache"))
    found = train(data, tmp_path / "frozen", ModelConfig("tiny", "lvq", lvq=LvqConfig(start="noise")), frozen)
    assert np.isfinite(found.test.loss)


def test_it_is_swept_paired_and_timed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(photos), "--out", str(tmp_path / "sweep"), "--seeds", "1", "--backbone", "tiny"]
    assert tnn_train(["sweep", *words, "--heads", "linear", "lvq", "--epochs", "1"]) == 0
    assert "head=lvq" in capsys.readouterr().out
    pair = tmp_path / "pair"
    words = ["--backbone", "tiny", "--classes", "4", "--size", "16", "--formats", "onnx", "-o", str(pair)]
    assert tnn_export(["pair", "--head", "lvq", *words]) == 0
    assert {path.name for path in pair.iterdir()} == {"lvq", "linear", "pair.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lvq.latent", "25"), "--lvq.latent is 25, and embeddings have 24 values; expected at most as many"),
        (("--lvq.relevances", "matrix", "--lvq.rank", "25"), "--lvq.rank is 25, and prototypes have 24 values"),
        (("--lvq.pooling", "mixture", "--lvq.loss", "glvq"), "--lvq.pooling is mixture, and --lvq.loss is glvq"),
        (("--lvq.prototypes", "50"), "choose fewer with --lvq.prototypes"),
        (("--lvq.start", "k-means"), "unknown --lvq.start 'k-means'; choose from auto, class-means, kmeans"),
        (("--lvq.transfer", "Sigmoid"), "unknown --lvq.transfer"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_trained(
    words: tuple[str, ...], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--data",
        str(photos),
        "--backbone",
        "tiny",
        "--head",
        "lvq",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    assert tnn_train([*options, *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tnn-train: error: ")
    assert message in error


def test_more_prototypes_than_images_say_so(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="images for 50 prototypes"):
        train(data, tmp_path / "run", ModelConfig("tiny", "lvq", lvq=LvqConfig(prototypes=50)), RECIPE)


def test_an_option_that_does_nothing_is_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--data",
        str(photos),
        "--backbone",
        "tiny",
        "--head",
        "lvq",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    assert tnn_train([*options, "--lvq.relevance-rate", "0.1"]) == 0
    assert "--lvq.relevance-rate does nothing with --lvq.relevances none" in capsys.readouterr().err
