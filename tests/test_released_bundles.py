"""Bundles of every schema that was ever released are read, run and explained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from fixtures.explain import CLASSES, FILE, explanations, numbers

from tnn_export.__main__ import main
from tnn_runtime import Classifier
from tnn_runtime.bundle.manifest import SCHEMA_VERSION

RELEASED = [FIXTURES / f"bundle-v{version}" for version in range(1, SCHEMA_VERSION + 1)]


def test_there_is_one_of_each_schema() -> None:
    assert sorted(FIXTURES.glob("bundle-v*")) == sorted(RELEASED)


@pytest.mark.parametrize("bundle", RELEASED, ids=lambda bundle: bundle.name)
def test_it_predicts_and_explains(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        images, expected = golden["images"], golden["logits"]
    with Classifier.load(bundle, "cpu") as classifier:
        logits = classifier.logits(images)
        np.testing.assert_allclose(logits, expected, atol=2e-4)
        ranked = classifier.predict(images, top_k=2)
        assert [best.index for best, _ in ranked] == list(expected.argmax(1))
        assert {prediction.label for prediction in ranked[0]} == {"cat", "dog"}
        for row, explanations in zip(logits, classifier.explain(images, top_k=2), strict=True):
            for explanation in explanations:
                assert explanation.logit == pytest.approx(row[explanation.index], abs=2e-4)


@pytest.mark.parametrize("bundle", RELEASED, ids=lambda bundle: bundle.name)
def test_it_is_shown(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    shown = {line.split("  ")[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert shown["bundle"] == f"{bundle} (schema {bundle.name[-1]})"
    assert shown["model"] == "tiny, tversky head, fp32, images 8x8x3"
    assert shown["classes"] == "2: cat, dog"


NAMES = {"lies", "not lies", "dog", "not dog"}
"""Of the features of the bundle of version 4: those of the attribute that a person named, and of the other one."""


@pytest.mark.parametrize("bundle", RELEASED, ids=lambda bundle: bundle.name)
def test_its_features_have_names_from_version_4_on(bundle: Path) -> None:
    stored = json.loads(FILE.read_text())[bundle.name]
    for row in explanations(bundle, stored["embeddings"], stored["logits"]):
        for explanation in row:
            named = bundle.name >= "bundle-v4"
            assert {feature.name for feature in explanation.features} == (NAMES if named else {None})
            assert {feature.title for feature in explanation.features} == (
                NAMES if named else {f"feature {feature.index}" for feature in explanation.features}
            )
            assert explanation.summary.startswith(f"{explanation.label}: ")


def test_the_newest_is_proven_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RELEASED[-1])]) == 0
    assert "passed" in capsys.readouterr().out


def test_the_first_has_no_record_of_its_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RELEASED[0])]) == 1
    assert "has no proof.npz, as bundles of schema 1; export it again" in capsys.readouterr().err


@pytest.mark.parametrize("bundle", RELEASED, ids=lambda bundle: bundle.name)
def test_its_explanations_are_those_that_were_stored(bundle: Path) -> None:
    stored = json.loads(FILE.read_text())[bundle.name]
    explained = explanations(bundle, stored["embeddings"], stored["logits"])
    for row, expected in zip(explained, stored["explanations"], strict=True):
        assert len(row) == len(expected) == CLASSES
        for explanation, one in zip(row, expected, strict=True):
            found = numbers(explanation)
            assert found.keys() == one.keys()
            assert found["label"] == one["label"]
            assert found["numbers"] == pytest.approx(one["numbers"], rel=1e-9)
            assert found["without_first"] == pytest.approx(one["without_first"], rel=1e-9)
            for name in ("parts", "features", "prototypes"):
                assert list(found[name]) == list(one[name])
                for key, value in found[name].items():
                    assert value == pytest.approx(one[name][key], rel=1e-9)


def test_maps_and_exemplars_of_version_5_are_read() -> None:
    with np.load(FIXTURES / "bundle-v5" / "golden.npz") as golden:
        images = golden["images"]
    with Classifier.load(FIXTURES / "bundle-v5", "cpu") as classifier:
        ((explanation,), *_) = classifier.explain(images, top_k=1, maps=True)
        faces = [classifier.exemplars(feature=feature.index) for feature in explanation.features]
        prototype = classifier.exemplars(prototype=explanation.index)
    assert explanation.maps is not None
    assert explanation.maps.logit.mean() == pytest.approx(explanation.logit - explanation.bias, abs=1e-4)
    assert [one.images.shape for one in faces] == [(4, 8, 8, 3)] * len(faces)
    assert set(prototype.labels) == {explanation.label}
