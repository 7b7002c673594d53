"""Reject scores that follow from where the embeddings of training images lie."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RECIPE
from scipy.special import ive
from scipy.stats import special_ortho_group

from tnn_export import export_bundle
from tnn_export.__main__ import main as tnn_export
from tnn_export.bundle.options import ExportOptions
from tnn_export.errors import ExportError
from tnn_runtime import ArtifactError, Classifier
from tnn_runtime.answers.density import Density
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import DENSITY_SCORES, calibrate
from tnn_train import ImageData, ModelConfig, load_checkpoint, save_checkpoint, train
from tnn_train.model.density import density_with_class, fit_density
from tnn_train.model.editing import add_class

RANDOM = np.random.default_rng(0)
LABELS = np.repeat(np.arange(3), 80)
CENTRES = RANDOM.normal(0, 4, (3, 6))
EMBEDDINGS = (CENTRES[LABELS] + RANDOM.normal(0, 1, (240, 6))).astype(np.float32)


def density(embeddings: np.ndarray = EMBEDDINGS, labels: np.ndarray = LABELS) -> Density:
    return fit_density(embeddings, labels)


def test_prototypes_are_the_means_of_the_classes() -> None:
    found = density()
    np.testing.assert_allclose(found.prototypes, [EMBEDDINGS[label == LABELS].mean(0) for label in range(3)], atol=1e-5)
    assert found.owners.tolist() == [0, 1, 2]


def test_scores_are_what_they_are_called() -> None:
    found = density()
    distances = np.linalg.norm(EMBEDDINGS[:, None].astype(float) - found.prototypes, axis=2)
    np.testing.assert_allclose(DENSITY_SCORES["distance"](EMBEDDINGS, found), -distances.min(1), rtol=1e-4)
    first, second = np.sort(distances**2, axis=1)[:, :2].T
    expected = (second - first) / (second + first)
    np.testing.assert_allclose(DENSITY_SCORES["confidence"](EMBEDDINGS, found), expected, rtol=1e-3, atol=1e-5)


def test_the_mixture_is_a_density_on_the_sphere() -> None:
    """Its mean over the sphere, by numbers drawn evenly, is 1 over the area."""
    embeddings = RANDOM.normal([2, 0, 0], 1, (60, 3)).astype(np.float32)
    found = fit_density(embeddings, np.repeat([0, 1], 30))
    points = RANDOM.normal(0, 1, (200_000, 3)).astype(np.float32)
    assert np.exp(found.log_likelihood(points)).mean() * 4 * np.pi == pytest.approx(1, abs=0.02)


def test_one_component_is_the_distribution_of_von_mises_and_fisher() -> None:
    embeddings = RANDOM.normal([3, 0, 0, 1], 1, (15, 4)).astype(np.float32)
    found = fit_density(embeddings, np.zeros(15, np.int64))
    kappa, x = float(found.concentration), embeddings[0].astype(float) / np.linalg.norm(embeddings[0])
    normaliser = kappa / ((2 * np.pi) ** 2 * ive(1, kappa) * np.exp(kappa))
    expected = np.log(normaliser) + kappa * (x @ found.directions[0])
    assert found.log_likelihood(embeddings[:1])[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [2, 50, 512, 2048, 8192])
@pytest.mark.parametrize("spread", [1e-4, 0.05, 3.0])
def test_it_stays_finite(size: int, spread: float) -> None:
    embeddings = (RANDOM.normal(0, 1, size) + RANDOM.normal(0, spread, (60, size))).astype(np.float32)
    found = fit_density(embeddings, np.repeat([0, 1], 30))
    scores = DENSITY_SCORES["vmf"](np.concatenate([embeddings, -embeddings, np.zeros_like(embeddings)]), found)
    assert np.isfinite(scores).all()
    assert scores[:60].mean() > scores[60:120].mean()


def test_turning_the_space_changes_no_score() -> None:
    turn = special_ortho_group.rvs(6, random_state=1).astype(np.float32)
    for name, score in DENSITY_SCORES.items():
        turned = score(EMBEDDINGS @ turn, density(EMBEDDINGS @ turn))
        np.testing.assert_allclose(turned, score(EMBEDDINGS, density()), rtol=1e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1, 1], [0, 1, 2]])
def test_classes_without_images_and_equal_images(labels: list[int]) -> None:
    found = fit_density(np.ones((3, 4), np.float32), np.array(labels))
    outputs = Outputs(np.zeros((3, 3), np.float32), np.ones((3, 4), np.float32))
    for score in DENSITY_SCORES:
        assert np.isfinite(calibrate(outputs, score, 0.5, found).scores(outputs, found)).all()


def test_maps_count_by_their_means() -> None:
    maps = RANDOM.normal(0, 1, (12, 5, 3, 3)).astype(np.float32)
    labels = np.repeat([0, 1], 6)
    one, other = fit_density(maps, labels), fit_density(maps.mean((2, 3)), labels)
    for score in DENSITY_SCORES.values():
        np.testing.assert_allclose(score(maps, one), score(maps.mean((2, 3)), other), rtol=1e-4, atol=1e-4)


def test_a_class_more_is_a_class_like_the_others() -> None:
    new = RANDOM.normal(8, 1, (40, 6)).astype(np.float32)
    found = density_with_class(density(), new, 1)
    assert found.owners.tolist() == [0, 2, 3, 1]
    before, after = density().log_likelihood(EMBEDDINGS), found.log_likelihood(EMBEDDINGS)
    assert (after >= before + np.log(3 / 4) - 1e-4).all()
    assert np.median(after - before - np.log(3 / 4)) < 0.1
    strange = RANDOM.normal(-8, 1, (40, 6)).astype(np.float32)
    assert found.log_likelihood(new).min() > found.log_likelihood(strange).max()


@pytest.fixture(scope="module")
def best(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a density; read only."""
    recipe = dataclasses.replace(RECIPE, exemplars=0)
    return train(data, tmp_path_factory.mktemp("density") / "run", ModelConfig("tiny"), recipe).best


@pytest.mark.parametrize("score", DENSITY_SCORES)
def test_a_bundle_rejects_by_it(score: str, best: Path, data: ImageData, tmp_path: Path) -> None:
    options = ExportOptions(("onnx",), reject_score=score, coverage=0.5)
    export_bundle(best, tmp_path / "bundle", options=options)
    checkpoint = load_checkpoint(best)
    assert checkpoint.density is not None
    images = data.test.sample(8)
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        expected = DENSITY_SCORES[score](classifier.embed(list(images)), checkpoint.density)
        np.testing.assert_allclose(classifier.reject_scores(list(images)), expected, rtol=1e-5)
        answers = classifier.predict(list(images), reject=True)
        threshold = classifier.info["reject"]["threshold"]
    assert [answer.rejected for answer in answers] == (expected < threshold).tolist()
    assert [answer.reject_score for answer in answers] == pytest.approx(expected.tolist(), rel=1e-5)


def test_it_is_in_the_bundle_only_where_it_is_needed(best: Path, tmp_path: Path) -> None:
    export_bundle(best, tmp_path / "plain", ("onnx",))
    assert not (tmp_path / "plain" / "density.npz").exists()
    export_bundle(best, tmp_path / "vmf", options=ExportOptions(("onnx",), reject_score="vmf"))
    assert tnn_export(["slim", str(tmp_path / "vmf"), "-o", str(tmp_path / "slim")]) == 0
    Classifier.load(tmp_path / "slim", "cpu").close()


def test_a_checkpoint_without_it_takes_training_images(
    best: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "old", dataclasses.replace(load_checkpoint(best), density=None))
    with pytest.raises(ExportError, match=r"the reject score vmf needs .* --density FOLDER, or choose one of lead"):
        export_bundle(tmp_path / "old", tmp_path / "out", options=ExportOptions(("onnx",), reject_score="vmf"))
    assert not (tmp_path / "out").exists()
    words = [str(tmp_path / "old"), "-o", str(tmp_path / "out"), "--formats", "onnx", "--reject-score", "vmf"]
    assert tnn_export([*words, "--density", str(photos)]) == 0
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert classifier.info["reject"]["score"] == "vmf"


def test_a_class_that_is_added_has_a_prototype(best: Path, data: ImageData) -> None:
    edited = add_class(load_checkpoint(best), "bear", data.test.sample(6))
    assert edited.density is not None
    assert sorted(edited.density.owners.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prototypes", lambda values: values[:, :-1]),
        ("directions", lambda values: values * np.nan),
        ("owners", lambda values: values + 2),
        ("owners", lambda values: values - 1),
        ("log_weights", lambda values: values[:-1]),
        ("concentration", lambda values: values[None]),
    ],
)
def test_a_damaged_density_gets_one_error(name: str, change: object, best: Path, tmp_path: Path) -> None:
    export_bundle(best, tmp_path / "bundle", options=ExportOptions(("onnx",), reject_score="distance"))
    file = tmp_path / "bundle" / "density.npz"
    with np.load(file) as arrays:
        content = dict(arrays)
    content[name] = change(content[name])  # type: ignore[operator]
    np.savez(file, **content)
    replace_record(tmp_path / "bundle", "density.npz")
    with pytest.raises(ArtifactError, match=r"density\.npz does not belong to the model .*; export the bundle again"):
        Classifier.load(tmp_path / "bundle", "cpu")


def replace_record(bundle: Path, name: str) -> None:
    """Let the manifest list a file as it is now."""
    from tnn_runtime.bundle.storage import describe_files

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] |= describe_files(bundle, [name])
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_that_lost_it_is_refused(best: Path, tmp_path: Path) -> None:
    export_bundle(best, tmp_path / "bundle", options=ExportOptions(("onnx",), reject_score="distance"))
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    del manifest["files"]["density.npz"]
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "bundle" / "density.npz").unlink()
    with pytest.raises(ArtifactError, match=r"rejects by distance and does not list density\.npz"):
        Classifier.load(tmp_path / "bundle", "cpu")
