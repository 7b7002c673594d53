"""Exemplars from a training to the runtime: kept, edited, exported, left out, and drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE

from tnn_export import ExportOptions, export_bundle
from tnn_export.__main__ import main as export
from tnn_runtime import Classifier, Manifest, UsageError
from tnn_runtime.drawing import Item, exemplars_of, page, strongest_features
from tnn_runtime.explain.exemplars import Faces, Gallery
from tnn_train import ImageData, TverskyConfig, TverskyHead, load_checkpoint, train
from tnn_train.model.editing import _with_class, add_class, edit_checkpoint
from tnn_train.training.loop import TrainResult

ONNX = ExportOptions(formats=("onnx",))


@pytest.fixture(scope="module")
def bundle(runs: dict[str, TrainResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exemplars") / "bundle"
    export_bundle(runs["tversky"].best, folder, options=dataclasses.replace(ONNX, outputs=("feature_maps",)))
    return folder


@pytest.mark.parametrize("name", ["tversky", "ratio", "linear"])
def test_a_training_keeps_the_images_that_have_a_feature_most(
    name: str, runs: dict[str, TrainResult], data: ImageData
) -> None:
    checkpoint = load_checkpoint(runs[name].best)
    gallery = checkpoint.exemplars
    assert gallery is not None
    assert gallery.class_names == data.class_names
    assert gallery.counts.tolist() == np.bincount(data.train.labels).tolist()
    assert (gallery.prototypes is None) is (name == "linear")
    assert len(gallery.features.numbers) > 0
    originals = {image.tobytes() for image in (data.train.decoded(place) for place in range(len(data.train)))}
    assert all(picture.tobytes() in originals for picture in gallery.pictures)


def test_a_training_without_them_keeps_none(data: ImageData, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", config=dataclasses.replace(RECIPE, exemplars=0))
    assert load_checkpoint(run.best).exemplars is None
    export_bundle(run.best, tmp_path / "bundle", options=ONNX)
    with (
        Classifier.load(tmp_path / "bundle", "cpu") as classifier,
        pytest.raises(UsageError, match=r"has no exemplars.npz; export a checkpoint .* --exemplars FOLDER"),
    ):
        classifier.exemplars(feature=0)


def test_the_bundle_shows_those_of_its_checkpoint(bundle: Path, runs: dict[str, TrainResult], photos: Path) -> None:
    gallery = load_checkpoint(runs["tversky"].best).exemplars
    assert gallery is not None
    with Classifier.load(bundle, "cpu") as classifier:
        for kind, number in (("feature", int(gallery.features.numbers[0])), ("prototype", 0)):
            found, expected = classifier.exemplars(**{kind: number}), gallery.find(kind, number)
            assert expected is not None
            assert (found.labels, found.values, found.boxes) == (expected.labels, expected.values, expected.boxes)
            assert np.array_equal(found.images, expected.images)
        (explanations,) = classifier.explain([photos / "cat" / "0.png"])
        faces = exemplars_of(classifier, explanations[0])
    assert list(faces) == strongest_features(explanations[0])
    drawn = page([Item(explanations, np.zeros((8, 8, 3), np.uint8), faces)])
    assert drawn.count("training image of the class") == sum(len(one.images) for one in faces.values()) > 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "got 0 of feature and prototype; give one of them"),
        ({"feature": 1, "prototype": 1}, "got 2 of feature and prototype; give one of them"),
        ({"feature": 10**6}, "has no exemplars of feature 1000000; it has those of .* features, numbered from 0 to"),
        ({"feature": -1}, "has no exemplars of feature -1"),
        ({"prototype": 99}, "has no exemplars of prototype 99; it has those of 2 prototypes, numbered from 0 to 1"),
        ({"feature": "closed loop"}, "feature is 'closed loop'; expected its number, as explanations have it"),
        ({"prototype": 1.0}, "prototype is 1.0; expected its number"),
        ({"feature": True}, "feature is True; expected its number"),
    ],
)
def test_what_has_none_is_told(asked: dict[str, int], message: str, bundle: Path) -> None:
    with Classifier.load(bundle, "cpu") as classifier, pytest.raises(UsageError, match=message):
        classifier.exemplars(**asked)


def test_serving_can_do_without_them(bundle: Path, tmp_path: Path) -> None:
    assert "exemplars.npz" in Manifest.read(bundle)[0].optional
    assert export(["slim", str(bundle), "-o", str(tmp_path / "slim")]) == 0
    assert not (tmp_path / "slim" / "exemplars.npz").exists()
    Classifier.load(tmp_path / "slim", "cpu").close()


def test_a_bundle_can_leave_them_out(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    words = [str(runs["tversky"].best), "-o", str(tmp_path / "bundle"), "--formats", "onnx", "--no-exemplars"]
    assert export(words) == 0
    assert "exemplars.npz" not in Manifest.read(tmp_path / "bundle")[0].files


def test_they_are_found_in_a_folder_of_training_images(
    runs: dict[str, TrainResult], photos: Path, data: ImageData, tmp_path: Path
) -> None:
    words = [str(runs["tversky"].best), "-o", str(tmp_path / "bundle"), "--formats", "onnx", "--exemplars", str(photos)]
    assert export(words) == 0
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        found = classifier.exemplars(prototype=0)
    assert len(found.images) == 4
    assert set(found.shares) == set(data.class_names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--exemplars", "{photos}", "--no-exemplars"], "got both --exemplars and --no-exemplars"),
        (["--exemplars", "{photos}/cat"], "the class of each training image is needed, and is not known"),
        (["--exemplars", "{photos}/missing"], "does not exist; expected a folder of images"),
    ],
)
def test_folders_without_classes_are_refused(
    words: list[str],
    message: str,
    runs: dict[str, TrainResult],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.format(photos=photos) for word in words]
    assert export([str(runs["tversky"].best), "-o", str(tmp_path / "bundle"), *given]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_resumed_training_without_them_takes_them_out(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = train(data, tmp_path / "run", config=recipe)
    assert load_checkpoint(run.best).exemplars is not None
    train(data, tmp_path / "run", config=dataclasses.replace(recipe, exemplars=0), resume=True)
    assert load_checkpoint(run.best).exemplars is None
    assert not (run.best / "exemplars.npz").exists()


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("config", [TverskyConfig(num_features=20), TverskyConfig(num_features=64, num_prototypes=15)])
def test_a_new_prototype_moves_those_behind_it(config: TverskyConfig, place: int) -> None:
    """Wherever it is put in: products of matrices with one row more may differ in the last bit everywhere."""
    torch.manual_seed(0)
    head = TverskyHead(512, 5, config).eval()
    x = torch.rand(40, 512)
    larger = head.with_class(x[:20], x[20:], place)
    numbers = np.arange(head.num_prototypes)
    count = len(numbers)
    faces = Faces(numbers, numbers[:, None], np.ones((count, 1), np.float32), np.ones((count, 1), np.float32))
    pictures = np.arange(count, dtype=np.uint8)[:, None, None, None]
    gallery = Gallery(pictures, np.zeros(count, np.int64), ("a",), np.array([count]), faces, faces)
    moved = _with_class(gallery, head, larger)
    new = count if config.num_prototypes else place
    assert moved.find("prototype", new) is None
    for number in range(count):
        one = moved.find("prototype", number + (number >= new))
        assert one is not None
        assert one.images.item() == number


def test_edits_keep_those_of_what_is_left(runs: dict[str, TrainResult], data: ImageData) -> None:
    checkpoint = load_checkpoint(runs["tversky"].best)
    before = checkpoint.exemplars
    assert before is not None
    number = int(before.features.numbers[0])
    dropped = edit_checkpoint(checkpoint, drop_features=[number]).exemplars
    assert dropped is not None
    assert dropped.find("feature", number) is None
    assert len(dropped.features.numbers) == len(before.features.numbers) - 1
    shown = {*dropped.features.pictures.ravel().tolist()}
    shown |= set() if dropped.prototypes is None else {*dropped.prototypes.pictures.ravel().tolist()}
    assert shown - {-1} == {*range(len(dropped.pictures))}, "a picture of what was dropped is kept"
    images = 255 - data.train.sample(6)
    larger = add_class(checkpoint, "bat", images)
    assert larger.class_names.index("bat") == 0
    assert larger.exemplars is not None
    assert larger.exemplars.find("prototype", 0) is None
    one, other = larger.exemplars.find("prototype", 1), before.find("prototype", 0)
    assert one is not None
    assert other is not None
    assert np.array_equal(one.images, other.images)
