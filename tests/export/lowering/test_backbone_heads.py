"""Every head behind the kinds of backbones that users ask for: trained, exported with a proof, served and explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from shallow import SHALLOW

from tnn_export import ExportOptions, export_bundle
from tnn_runtime import Classifier
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_train import (
    LogicConfig,
    MatchingConfig,
    ModelConfig,
    PartsConfig,
    TrainConfig,
    TverskyConfig,
    load_data,
    train,
)
from tnn_train.heads import HEADS
from tnn_train.model.backbones import BACKBONES

SIDES = {"efficientnet_b0": 64, "convnext_tiny": 64, "vit_b_16": 224}
RECIPE = TrainConfig(epochs=1, batch_size=8, augment=())
SMALL = {
    "logic": LogicConfig(bits=2, layers=2),
    "matching": MatchingConfig(8),
    "parts": PartsConfig(per_class=2, depth=8),
    "tversky": TverskyConfig(num_features=16),
}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("backbone", SIDES)
@pytest.mark.parametrize("head", HEADS)
def test_it_gets_from_photos_into_a_bundle(
    head: str, backbone: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, backbone, SHALLOW[backbone])
    data = load_data(photos, image_size=SIDES[backbone])
    options = {head: SMALL[head]} if head in SMALL else {}
    run = train(data, tmp_path / "run", ModelConfig(backbone, head, **options), RECIPE)  # type: ignore[arg-type]
    export = ExportOptions(("onnx", "torchscript"), batch=BatchBounds(1, 4))
    report = export_bundle(run.best, tmp_path / "bundle", options=export)
    assert report.passed
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        images = data.test.pixels[:4]
        logits = classifier.logits(images)
        for row, explained in zip(logits, classifier.explain(images), strict=True):
            assert explained[0].logit == pytest.approx(row[explained[0].index], rel=1e-3, abs=1e-3)
