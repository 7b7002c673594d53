from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tnn_export import ExportError, ExportOptions, export_bundle
from tnn_export.__main__ import main
from tnn_export.bundle.temperature import FEWEST, Trust, find_temperature
from tnn_runtime import Classifier, Manifest
from tnn_train import ImageData, load_checkpoint
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.training.loop import TrainResult


def drawn(temperature: float, count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits, and classes that are drawn from the softmax of the logits divided by a temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, 6)).astype(np.float32)
    noise = random.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.7, 4.0])
def test_it_finds_the_temperature_that_classes_were_drawn_with(temperature: float) -> None:
    logits, labels = drawn(temperature, 4000)
    scaling = find_temperature(logits, labels)
    assert scaling.temperature == pytest.approx(temperature, rel=0.1)
    assert (scaling.images, "fitted on 4000 held-out images" in str(scaling)) == (4000, True)
    assert scaling.before is not None
    assert scaling.after is not None
    assert scaling.after.nll < scaling.before.nll
    assert scaling.after.ece < scaling.before.ece / 2


@pytest.mark.parametrize("temperature", [0.5, 1.7, 4.0])
def test_no_other_temperature_has_a_smaller_loss(temperature: float) -> None:
    logits, labels = drawn(temperature, 300)
    scaling = find_temperature(logits, labels)
    assert scaling.temperature is not None

    def loss(value: float) -> float:
        return float(functional.cross_entropy(torch.from_numpy(logits).double() / value, torch.from_numpy(labels)))

    assert all(loss(scaling.temperature) < loss(scaling.temperature * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_the_measures_are_those_of_an_evaluation() -> None:
    logits, labels = drawn(2.0, 500)
    evaluation = Evaluation.of(torch.from_numpy(logits), torch.from_numpy(labels))
    trust = Trust.of(logits.astype(np.float64), labels)
    assert trust.nll == pytest.approx(evaluation.loss, rel=1e-5)
    assert trust.ece == pytest.approx(evaluation.calibration(15).ece, rel=1e-3)


def test_after_is_measured_on_images_that_the_temperature_was_not_fitted_on() -> None:
    """A fit flatters itself: what is told is the worse number, for any images."""
    flattering, told = [], []
    for seed in range(40):
        logits, labels = drawn(3.0, FEWEST, seed)
        scaling = find_temperature(logits, labels)
        if scaling.temperature is not None and scaling.after is not None:
            flattering.append(Trust.of(logits.astype(np.float64) / scaling.temperature, labels).nll)
            told.append(scaling.after.nll)
    assert len(told) > 30
    assert all(one > other for one, other in zip(told, flattering, strict=True))


@pytest.mark.parametrize(
    ("logits", "labels", "why"),
    [
        (*(drawn(2.0, FEWEST - 1)), f"{FEWEST - 1} held-out images of known class; a temperature needs {FEWEST}"),
        (drawn(2.0, 180)[0], np.full(180, -1), "the classes of 180 images are not known; a temperature needs"),
        (drawn(2.0, 0)[0], np.zeros(0, np.int64), "there are no held-out images; a temperature needs"),
        (drawn(2.0, 180)[0], drawn(2.0, 180)[0].argmax(1), "all 180 held-out images get the right class"),
        (drawn(2.0, 180)[0], drawn(2.0, 180)[0].argmin(1), "no temperature from 0.05 to 20 is best"),
        (*drawn(1.0, 200, seed=3), "is not surely better on others"),
    ],
)
def test_where_none_can_be_found_the_reason_is_told(
    logits: NDArray[np.float32], labels: NDArray[np.int64], why: str
) -> None:
    scaling = find_temperature(logits, labels)
    assert (scaling.temperature, scaling.after) == (None, None)
    assert str(scaling).startswith("softmax(logits), without a temperature: ")
    assert why in str(scaling)
    assert (scaling.before is None) == (not (labels >= 0).any())


def test_images_of_unknown_class_are_left_out() -> None:
    logits, labels = drawn(2.0, 400)
    some = np.where(np.arange(400) % 2, labels, -1)
    scaling, half = find_temperature(logits, some), find_temperature(logits[1::2], labels[1::2])
    assert scaling == half
    assert scaling.images == 200


def test_a_bundle_has_it_and_its_scores_follow(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(runs["linear"].best)
    with torch.no_grad():  # So sure that a third of wrong answers contradicts it.
        checkpoint.model.head.weight.mul_(20)
    noise = np.random.default_rng(0).integers(0, 40, (5, *data.train.pixels.shape), dtype=np.uint8)
    images = np.concatenate([np.minimum(data.train.pixels, 215) + one for one in noise])[:120]
    options = ExportOptions(("onnx",), reject_score="probability", coverage=0.9)
    bundle, plain = tmp_path / "bundle", tmp_path / "plain"
    report = export_bundle(checkpoint, plain, options=options, images=images)
    assert "the classes of 120 images are not known" in report.scores
    with Classifier.load(plain, "cpu") as classifier:
        logits = classifier.logits(images)
    labels = np.where(np.arange(120) % 3, logits.argmax(1), logits.argmin(1))
    report = export_bundle(checkpoint, bundle, options=options, images=images, labels=labels)
    manifest, before = Manifest.read(bundle)[0], Manifest.read(plain)[0]
    assert before.temperature is None
    assert manifest.temperature is not None
    assert manifest.temperature > 1
    assert f"scores: softmax(logits / {manifest.temperature:.4g}), fitted on 120" in report.table()
    card = (bundle / "README.md").read_text()
    assert f"The score of a class is {report.scores}. Logits, their order" in card
    for name in ("ece", "nll"):
        assert manifest.metrics[f"held_out_{name}_after"] < manifest.metrics[f"held_out_{name}_before"]
    assert manifest.metrics["held_out_images"] == 120
    assert main(["inspect", str(bundle)]) == 0
    shown = {line.split("  ")[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert shown["scores"] == f"softmax(logits / {manifest.temperature:.4g})"
    assert "held_out_ece_after" in shown["metrics"]
    assert manifest.reject == before.reject
    with Classifier.load(bundle, "cpu") as classifier, Classifier.load(plain, "cpu") as other:
        np.testing.assert_array_equal(classifier.reject_scores(images), other.reject_scores(images))
        np.testing.assert_array_equal(classifier.logits(images), logits)
        ranked = classifier.predict(images[:4], top_k=2)
        assert [[one.index for one in row] for row in ranked] == [
            [one.index for one in row] for row in other.predict(images[:4], top_k=2)
        ]
        expected = torch.from_numpy(logits[:4]).double().div(manifest.temperature).softmax(1).numpy()
        found = [[one.score for one in sorted(row, key=lambda one: one.index)] for row in ranked]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ExportError, match="got the temperature .*; expected a number above 0, 1 for none"):
        ExportOptions(temperature=temperature)


@pytest.mark.parametrize("temperature", ["0.5", "1", "3"])
def test_a_temperature_can_be_given(
    temperature: str, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(runs["linear"].best),
        "-o",
        str(tmp_path / "bundle"),
        "--formats",
        "onnx",
        "--temperature",
        temperature,
    ]
    assert main(words) == 0
    assert f"scores: softmax(logits / {temperature}), as it was given; expected" in capsys.readouterr().out
    content = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert content["temperature"] == float(temperature)
