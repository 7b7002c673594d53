"""``tnn-export edit`` and ``tnn-export add-class``: from a checkpoint to another one, and to its bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import RECIPE, Once, draw_photos
from PIL import Image

from tnn_export import export_bundle
from tnn_export.__main__ import main
from tnn_runtime import Classifier, Manifest
from tnn_train import (
    Checkpoint,
    ImageData,
    ModelConfig,
    TrainConfig,
    TverskyConfig,
    evaluate,
    load_checkpoint,
    load_data,
    train,
)
from tnn_train.model.editing import _kinship
from tnn_train.model.image_model import embed
from tnn_train.training.loop import TrainResult

FORMS = {
    "unfolded": ModelConfig(backbone="tiny", tversky=TverskyConfig(start="linear")),
    "mapped": ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=16, num_prototypes=5)),
}


@pytest.fixture(scope="module")
def checkpoints(data: ImageData, runs: dict[str, TrainResult], once: Once) -> dict[str, Path]:
    """Checkpoints of an unfolded head, of one with a linear map, and of the runs that all tests share."""
    made = once(
        "edited", lambda folder: {name: train(data, folder / name, form, RECIPE).best for name, form in FORMS.items()}
    )
    return {**{name: run.best for name, run in runs.items()}, **made}


def edit(source: Path, out: Path, *words: str) -> Checkpoint:
    assert main(["edit", str(source), "-o", str(out), *words]) == 0
    return load_checkpoint(out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["unfolded", "mapped", "tversky", "jumping", "ratio", "linear"])
def test_the_bundle_of_an_edited_checkpoint_gives_what_explanations_told(
    name: str, checkpoints: dict[str, Path], data: ImageData, tmp_path: Path
) -> None:
    source = checkpoints[name]
    gone = [1] if name == "unfolded" else [1, 0]  # An unfolded head of two classes has one feature and its opposite.
    words = [word for feature in gone for word in ("--drop-features", str(feature))]
    edited = edit(source, tmp_path / "edited", *words)
    export_bundle(source, tmp_path / "before", ("onnx",))
    assert export_bundle(tmp_path / "edited", tmp_path / "after", ("onnx",)).passed
    images = data.test.pixels
    with Classifier.load(tmp_path / "before", "cpu") as before, Classifier.load(tmp_path / "after", "cpu") as after:
        logits = after.logits(images)
        for row, explanations in zip(logits, before.explain(images, top_k=2, num_features=10_000), strict=True):
            for one in explanations:
                assert row[one.index] == pytest.approx(one.without(gone), rel=1e-5, abs=1e-5)
        for explanations in after.explain(images, top_k=2, num_features=10_000):
            for one in explanations:
                assert name == "linear" or not {*gone} & {feature.index for feature in one.features}
    model = load_checkpoint(source).model
    x = embed(model.backbone, edited.preprocessing, images)
    np.testing.assert_allclose(logits, edited.model.head(x).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_an_edit_is_on_record(checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoints["unfolded"]
    before = files(source)
    edited = edit(source, tmp_path / "edited", "--drop-features", "1", "--rename-feature", "0", "has wings")
    printed = capsys.readouterr().out.splitlines()
    digest = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    (record,) = edited.training["edits"]
    assert record["checkpoint"] == digest == load_checkpoint(source).digest
    assert record["dropped_features"] == [1]
    assert record["renamed_features"] == {"0": "has wings"}
    assert record["metrics"]["test_accuracy"] == 1
    assert record["samples"] == len(edited.samples)
    right = (evaluate_samples(edited) == edited.labels).mean()
    assert record["accuracy_after"] == edited.metrics.get("edited_accuracy", 0.0) == right
    assert "test_accuracy" not in edited.metrics
    assert "feature 1 ('not cat') is left out" in printed
    assert "feature 0 is called 'has wings', no longer 'cat'" in printed
    again = edit(tmp_path / "edited", tmp_path / "again", "--rename-feature", "has wings", "flies")
    assert [one["checkpoint"] for one in again.training["edits"]] == [digest, edited.digest]
    export_bundle(tmp_path / "again", tmp_path / "bundle", ("onnx",))
    card = (tmp_path / "bundle" / "README.md").read_text()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "bundle")]) == 0
    shown = capsys.readouterr().out
    for line in (digest, edited.digest, *record["changes"], *record["results"], "feature 0 is called 'flies'"):
        assert line in card
        assert line in shown
    assert files(source) == before


def evaluate_samples(checkpoint: Checkpoint) -> np.ndarray:
    x = embed(checkpoint.model.backbone, checkpoint.preprocessing, checkpoint.samples)
    return checkpoint.model.head(x).argmax(1).numpy()


@pytest.mark.parametrize(
    ("name", "rename", "expected"),
    [
        ("unfolded", ["0", "has wings"], {0: "has wings", 1: "not has wings"}),
        ("unfolded", ["1", "walks"], {0: "cat", 1: "walks"}),
        ("unfolded", ["not cat", "wild dog"], {0: "cat", 1: "wild dog"}),
        ("mapped", ["7", "closed loop"], {6: None, 7: "closed loop"}),
        ("ratio", ["0", "Öhr ✓"], {0: "Öhr ✓", 1: None}),
    ],
)
def test_new_names_are_in_explanations(
    name: str,
    rename: list[str],
    expected: dict[int, str | None],
    checkpoints: dict[str, Path],
    data: ImageData,
    tmp_path: Path,
) -> None:
    edit(checkpoints[name], tmp_path / "edited", "--rename-feature", *rename)
    export_bundle(tmp_path / "edited", tmp_path / "bundle", ("onnx",))
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        ((one, *_), *_) = classifier.explain(data.test.pixels[:1], num_features=16)
    found = {feature.index: feature.name for feature in one.features}
    assert {index: found[index] for index in expected} == expected


def test_an_edited_checkpoint_trains_further_with_its_edit(
    checkpoints: dict[str, Path], data: ImageData, tmp_path: Path
) -> None:
    for name in ("unfolded", "mapped"):
        edited = edit(checkpoints[name], tmp_path / name, "--drop-features", "1", "--rename-feature", "0", "wings")
        recipe = TrainConfig(epochs=1, batch_size=16, augment=(), weights=str(tmp_path / name), keep_head=True)
        run = train(data, tmp_path / f"run-{name}", FORMS[name], recipe)
        further = load_checkpoint(run.best)
        assert further.config.tversky == edited.config.tversky
        assert further.config.tversky.dropped == (1,)
        assert further.model.head.feature_names(further.class_names)[0] == "wings"
        assert evaluate(further.model, data.test).accuracy >= 0.5


def test_prototypes_are_left_out(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    edited = edit(checkpoints["mapped"], tmp_path / "edited", "--drop-prototypes", "0", "3")
    assert edited.model.head.prototypes.shape[0] == edited.config.tversky.num_prototypes == 3
    assert export_bundle(tmp_path / "edited", tmp_path / "bundle", ("onnx",)).passed


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("tversky", [], "nothing is to be edited; give features or prototypes"),
        ("tversky", ["--drop-features", "16"], "the head has no feature '16'; give numbers of features, 0 to 15"),
        ("tversky", ["--drop-features", "-1"], "the head has no feature '-1'"),
        ("unfolded", ["--drop-features", "cta"], "the head has no feature 'cta'; did you mean 'cat'?"),
        ("unfolded", ["--drop-features", "0", "not cat"], "all 2 features are left out; leave at least one"),
        ("linear", ["--drop-features", *map(str, range(24))], "all features that have a weight are left out"),
        ("tversky", ["--drop-prototypes", "1"], "prototype 1 is the only one of its class"),
        ("tversky", ["--drop-prototypes", "2"], "the tversky head has no prototype 2; it has prototypes 0 to 1"),
        ("mapped", ["--drop-prototypes", "-1"], "the tversky head has no prototype -1; it has prototypes 0 to 4"),
        ("mapped", ["--drop-prototypes", *"01234"], "all 5 prototypes are left out; leave at least one"),
        ("linear", ["--drop-prototypes", "0"], "the linear head has no prototype 0; it has none"),
        ("mapped", ["--drop-prototypes", "one"], "argument --drop-prototypes: got 'one'; expected an integer"),
        ("linear", ["--rename-feature", "3", "x"], "the features of a linear head have no names"),
        ("tversky", ["--rename-feature", "99", "x"], "the head has no feature '99'"),
        ("tversky", ["--rename-feature", "3", ""], "got the name '' of a feature; expected text on one line"),
        ("tversky", ["--rename-feature", "3", " x"], "got the name ' x' of a feature"),
        ("tversky", ["--rename-feature", "3", "a\nb"], "got the name 'a\\nb' of a feature"),
        ("unfolded", ["--rename-feature", "1", "cat"], "feature 0 is called 'cat', too; give feature 1 another name"),
        (
            "tversky",
            ["--rename-feature", "1", "x", "--rename-feature", "2", "x"],
            "feature 2 is called 'x', too; give feature 1 another name",
        ),
        ("tversky", ["--rename-feature", "1", "x", "--rename-feature", "1", "y"], "a feature is to get two names"),
        ("tversky", ["--rename-feature", "1", "x", "--drop-features", "1"], "feature 1 is to be left out and to get a"),
        ("tversky", ["--rename-feature", "1"], "expected 2 arguments"),
    ],
)
def test_bad_edits_get_one_line_and_write_nothing(
    name: str,
    words: list[str],
    message: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["edit", str(checkpoints[name]), "-o", str(tmp_path / "out"), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ") or "error: " in error
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_feature_is_left_out_once(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(checkpoints["tversky"], tmp_path / "once", "--drop-features", "3", "3")
    assert main(["edit", str(tmp_path / "once"), "-o", str(tmp_path / "twice"), "--drop-features", "3"]) == 1
    assert "feature 3 is left out already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["edit", "add-class"])
def test_what_exists_is_kept(
    command: str, checkpoints: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(checkpoints["tversky"], tmp_path / "source"))
    before = files(source)
    words = ["--drop-features", "1"] if command == "edit" else ["--name", "owl", "--images", str(photos / "cat")]
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("dear")
    for out, message in (
        (source, "already exists; choose another output folder or pass --overwrite"),
        (other, "already exists and has no config.json, so it is something else"),
    ):
        assert main([command, str(source), "-o", str(out), *words]) == 1
        assert message in capsys.readouterr().err
    assert main([command, str(source), "-o", str(source), "--overwrite", *words]) == 1
    assert "is the checkpoint that is to be edited; choose another output folder" in capsys.readouterr().err
    assert (files(source), files(other)) == (before, {"diary.txt": b"dear"})
    out = tmp_path / "out"
    for more in ([], ["--overwrite"]):
        assert main([command, str(source), "-o", str(out), *words, *more]) == 0


@pytest.fixture(scope="module")
def owls(once: Once) -> Path:
    """Nine pictures of a class that nobody trained: a bright diagonal, and a copy of one of them."""

    def draw(folder: Path) -> Path:
        random = np.random.default_rng(1)
        (folder / "inner").mkdir(parents=True)
        for number in range(9):
            image = random.integers(0, 90, (16, 20, 3), dtype=np.uint8)
            for row in range(16):
                image[row, max(0, row - 1) : row + 3] += 150
            Image.fromarray(image).save(folder / "inner" / f"{number}.png")
        shutil.copy(folder / "inner" / "0.png", folder / "inner" / "copy.png")
        return folder

    return once("owls", draw)


@pytest.mark.parametrize("name", ["unfolded", "mapped", "tversky", "ratio", "linear"])
@pytest.mark.parametrize(("label", "place"), [("owl", 2), ("ape", 0), ("cow", 1)])
def test_a_class_is_added_and_exported(
    name: str,
    label: str,
    place: int,
    checkpoints: dict[str, Path],
    owls: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = checkpoints[name], tmp_path / "out"
    assert main(["add-class", str(source), "--name", label, "--images", str(owls), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    moved = [one for one in ("cat", "dog") if f"each class from {one!r} on has the next" in told]
    assert moved == ["cat", "dog"][place : place + 1]
    before, after = load_checkpoint(source), load_checkpoint(out)
    assert after.class_names == tuple(sorted(("cat", "dog", label)))
    assert after.class_names[place] == label
    assert after.labels is not None
    assert before.labels is not None
    new = after.labels == place
    assert (new.sum(), len(after.labels)) == (3, len(before.labels) + 3)
    assert [after.class_names[one] for one in after.labels[~new]] == [before.class_names[one] for one in before.labels]
    (record,) = after.training["edits"]
    assert (record["added_class"], record["new_samples"], record["samples"]) == (label, 3, len(before.samples))
    right = evaluate_samples(after) == after.labels
    assert record["new_accuracy"] == right[new].mean()
    assert record["accuracy_after"] == right[~new].mean()
    assert record["accuracy_before"] == (evaluate_samples(before) == before.labels).mean()
    logits = after.model.head(embed(after.model.backbone, after.preprocessing, before.samples)).detach().numpy()
    old = before.model.head(embed(before.model.backbone, before.preprocessing, before.samples)).detach().numpy()
    np.testing.assert_allclose(np.delete(logits, place, axis=1), old, rtol=1e-5, atol=1e-5)
    if label == "owl":
        export_bundle(out, tmp_path / "bundle", ("onnx",))
        assert Manifest.read(tmp_path / "bundle")[0].class_names == after.class_names
        with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
            assert {one.label for one in classifier.explain([owls / "inner" / "1.png"], top_k=3)[0]} == {
                *after.class_names
            }


@pytest.mark.parametrize(
    ("names", "name", "told"),
    [
        (("cat", "dog"), "owl", []),
        (("n/a", "dog"), "owl", []),
        (("cat", "dog"), "animal/owl", ["'animal/owl' has no parent, as no other class is below 'animal'"]),
        (("animal/cat", "dog"), "animal/owl", ["'animal/owl' is one of 2 classes below 'animal', which makes it a p"]),
        (("animal/cat", "animal/dog"), "animal/owl", ["'animal/owl' is one of 3 classes below 'animal'"]),
        (("a/b/c", "a/b/d", "a/e"), "a/b/f", ["'a/b/f' is one of 3 classes below 'a/b'"]),
        (("animal/cat", "animal/dog"), "owl", ["'owl' has no parent, unlike 'animal/cat', and stands for itself"]),
        (("animal/cat", "animal/dog"), "x/owl", ["'x/owl' has no parent, unlike 'animal/cat', and stands for itself"]),
    ],
)
def test_a_new_class_is_told_its_parent(names: tuple[str, ...], name: str, told: list[str]) -> None:
    found = _kinship(name, names)
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def test_a_larger_checkpoint_trains_further(checkpoints: dict[str, Path], owls: Path, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos")
    shutil.copytree(owls / "inner", photos / "bat")
    for name in ("unfolded", "mapped"):
        out = tmp_path / name
        assert main(["add-class", str(checkpoints[name]), "--name", "bat", "--images", str(owls), "-o", str(out)]) == 0
        recipe = TrainConfig(epochs=1, batch_size=16, augment=(), weights=str(out), keep_head=True)
        run = train(load_data(photos), tmp_path / f"run-{name}", ModelConfig(backbone="tiny"), recipe)
        assert load_checkpoint(run.best).class_names == ("bat", "cat", "dog")


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("cat", "OWLS", "the checkpoint has a class called 'cat'; give the new one another name"),
        ("Cat", "OWLS", "has a class 'cat', and 'Cat' differs from it in nothing but capitals"),
        (" dog", "OWLS", "got the name ' dog' of a class; expected text on one line"),
        ("", "OWLS", "got the name '' of a class"),
        ("owl", "nowhere", "nowhere does not exist; expected a folder of images"),
        ("owl", "FILE", "is a file; expected a folder of images"),
        ("owl", "EMPTY", "has no files; expected a folder of images"),
        ("owl", "TEXT", "notes.txt is not an image that can be read"),
        ("owl", "ONE", "got 1 different image of 'owl'; expected at least 2"),
    ],
)
def test_bad_classes_get_one_line_and_write_nothing(
    name: str,
    folder: str,
    message: str,
    checkpoints: dict[str, Path],
    owls: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for empty in ("EMPTY", "TEXT", "ONE"):
        (tmp_path / empty).mkdir()
    (tmp_path / "TEXT" / "notes.txt").write_text("no picture")
    for copy in ("a.png", "b.png"):
        shutil.copy(owls / "inner" / "0.png", tmp_path / "ONE" / copy)
    there = {"OWLS": owls, "FILE": owls / "inner" / "0.png"}.get(folder, tmp_path / folder)
    before = sorted(tmp_path.iterdir())
    words = [str(checkpoints["tversky"]), "--name", name, "--images", str(there), "-o", str(tmp_path / "out")]
    assert main(["add-class", *words]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_the_output_may_not_lie_among_the_images(
    checkpoints: dict[str, Path], owls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(checkpoints["tversky"]), "--name", "owl", "--images", str(owls), "-o", str(owls / "out")]
    assert main(["add-class", *words]) == 1
    assert "lies among the images" in capsys.readouterr().err
    assert [path.name for path in owls.iterdir()] == ["inner"]


def test_a_damaged_form_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    edit(checkpoints["tversky"], tmp_path / "edited", "--drop-features", "1")
    export_bundle(tmp_path / "edited", tmp_path / "bundle", ("onnx",))
    content = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    for name, value, message in (
        ("dropped", [99], "those that are left out are"),
        ("dropped", [*range(16)], "those that are left out are"),
        ("dropped", ["1"], "cannot be explained by this version"),
        ("dropped", [1, 1], "cannot be explained by this version"),
        ("names", [{"index": 1}], "cannot be explained by this version"),
        ("names", [{"index": 1, "name": 3}], "cannot be explained by this version"),
    ):
        form = {**content["model"]["tversky"], name: value}
        changed = {**content, "model": {**content["model"], "tversky": form}}
        (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(Exception, match=message):
            Classifier.load(tmp_path / "bundle", "cpu")
