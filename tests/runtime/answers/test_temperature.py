from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from scipy.special import softmax

from tnn_runtime import ArtifactError, Classifier, Prediction
from tnn_runtime.bundle.manifest import SCHEMA_VERSION

BUNDLES = [FIXTURES / f"bundle-v{version}" for version in range(1, SCHEMA_VERSION + 1)]


def set_temperature(bundle: Path, value: object) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**content, "temperature": value}))


@pytest.mark.parametrize("temperature", [None, 0.25, 1.0, 6.0])
def test_every_way_to_scores_goes_by_it(small_bundle: Path, temperature: float | None) -> None:
    set_temperature(small_bundle, temperature)
    with np.load(small_bundle / "golden.npz") as golden:
        images = golden["images"]
    with Classifier.load(small_bundle, "cpu") as classifier:
        assert classifier.info["temperature"] == temperature
        logits = classifier.logits(images)
        expected = softmax(logits.astype(np.float64) / (temperature or 1), axis=1)
        answers = [classifier.submit(image, answer="all", top_k=2).result() for image in images]
        found: list[list[Prediction]] = [
            *classifier.predict(images, top_k=2),
            *asyncio.run(classifier.predict_async(images, top_k=2)),
            *(answer.predictions for answer in answers),
        ]
        for number, row in enumerate(found):
            number %= len(images)
            assert [one.index for one in row] == np.argsort(-logits[number]).tolist()
            np.testing.assert_allclose([one.score for one in row], -np.sort(-expected[number]), rtol=1e-5)
        for number, explanations in enumerate(
            [*classifier.explain(images, top_k=2), *(answer.explanations or [] for answer in answers)]
        ):
            number %= len(images)
            for one in explanations:
                assert one.score == pytest.approx(expected[number, one.index], rel=1e-5)
                assert one.logit == pytest.approx(logits[number, one.index], abs=2e-4)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_bundles_without_one_score_as_they_did(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        images = golden["images"]
    with Classifier.load(bundle, "cpu") as classifier:
        temperature = 1.5 if bundle.name == "bundle-v5" else None
        assert classifier.info["temperature"] == temperature
        logits = classifier.logits(images).astype(np.float64)
        scores = [[one.score for one in row] for row in classifier.predict(images, top_k=2)]
        np.testing.assert_allclose(scores, -np.sort(-softmax(logits / (temperature or 1), axis=1)), rtol=1e-5)


def test_reject_scores_stay(small_bundle: Path) -> None:
    content = json.loads((small_bundle / "manifest.json").read_text())
    content["reject"] |= {"score": "probability", "threshold": 0.6}
    (small_bundle / "manifest.json").write_text(json.dumps(content))
    with np.load(small_bundle / "golden.npz") as golden:
        images = golden["images"]
    found = []
    for temperature in (None, 0.1, 10.0):
        set_temperature(small_bundle, temperature)
        with Classifier.load(small_bundle, "cpu") as classifier:
            predictions = classifier.predict(images, reject=True)
            found.append([(one.rejected, one.reject_score) for one in predictions])
            assert [one.reject_score for one in predictions] == classifier.reject_scores(images).tolist()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("value", [0, -1.5, "1", True, [1.0]])
def test_what_is_no_temperature_is_refused(small_bundle: Path, value: object) -> None:
    set_temperature(small_bundle, value)
    with pytest.raises(ArtifactError, match="temperature"):
        Classifier.load(small_bundle, "cpu")


def test_explanations_say_it_as_plain_values(small_bundle: Path) -> None:
    set_temperature(small_bundle, 2.0)
    with np.load(small_bundle / "golden.npz") as golden, Classifier.load(small_bundle, "cpu") as classifier:
        (one, *_), *_ = classifier.explain(golden["images"][:1])
    assert json.loads(json.dumps(one.to_dict()))["score"] == dataclasses.asdict(one)["score"] == one.score
