from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from torchvision import datasets

from tnn_runtime import InputError
from tnn_runtime.images.folders import SPLITS, match_names, read_image_folder


def touch(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_class_folders_are_counted_as_torchvision_counts_them(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "a 10/1.png", "a 9/1.png", "B/1.png", ".hidden/1.png", "c/d/1.png", "file.png")
    names = read_image_folder(tmp_path).class_names
    assert names == ("B", "a 10", "a 9", "b", "c")
    assert names == tuple(name for name in datasets.folder.find_classes(tmp_path)[0] if not name.startswith("."))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("TRAINING", "VALIDATION", "TESTING"),
        ("training", "dev", "eval"),
        ("train", None, "Eval"),
        ("Training", "Val", None),
        (None, "valid", "test"),
    ],
)
def test_splits_are_known_by_their_names(
    train: str | None, val: str | None, test: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {split: name for split, name in zip(SPLITS, (train, val, test), strict=True) if name}
    for name in given.values():
        touch(tmp_path, *(f"{name}/{file}" for file in ("cat/1.png", "dog/1.png", "dog/2.png", "labels.csv", "x.png")))
    folder = read_image_folder(touch(tmp_path, "README.md", "__MACOSX/train/cat/._1.png"))
    assert list(folder.parts) == list(given)
    assert folder.class_names == ("cat", "dog")
    assert folder.beside == [tmp_path / "README.md"]
    for split, name in given.items():
        part = folder.parts[split]
        assert {key: [path.name for path in paths] for key, paths in part.classes.items()} == {
            "cat": ["1.png"],
            "dog": ["1.png", "2.png"],
        }
        assert [path.name for path in part.beside] == ["labels.csv", "x.png"]
        assert folder.files(split)[-2:] == [(tmp_path / name / "dog" / "2.png", "dog"), (tmp_path / name / "x.png", "")]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["train", "Training", "test", "Eval", "dev"])
def test_a_class_with_the_name_of_a_split_is_a_class(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = read_image_folder(touch(tmp_path, f"{name}/1.png", "bus/1.png", "car/1.jpg"))
    assert sorted(folder.class_names) == sorted(("bus", "car", name))
    (record,) = caplog.records
    assert f"{tmp_path / name} has the name of a split, but counts as a class" in record.getMessage()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("train/cat/1.png", "val/cat/1.png", "valid/cat/1.png"),
            r"has val and valid, which both mean val \(val, valid, validation, dev are one\); put their images",
        ),
        (("train/cat/1.png", "Train/cat/1.png"), r"has Train and train, which both mean train"),
        (("training/cat/1.png", "test/cat/1.png", "eval/cat/1.png"), r"has eval and test, which both mean test"),
        (
            ("train/cat/1.png", "train/dog/1.png", "unlabeled/1.png"),
            "has unlabeled beside train; expected train, test and optionally val, .*: move unlabeled away, or give "
            ".*/train alone",
        ),
        (("Train/cat/1.png", "Test/cat/1.png", "extra/cat/1.png"), "has extra beside Train; expected train, test"),
        (
            ("cat/1.png", "dog/1.png", "test/cat/2.png"),
            "has cat, dog beside test; expected .*: move the class folders into .*/train",
        ),
        (
            ("fold1/cat/1.png", "fold1/dog/1.png", "fold2/cat/1.png", "fold2/dog/1.png"),
            "fold1, fold2, hold folders of the same names, cat, dog; if they are parts of one data set, name",
        ),
        (
            (
                *(f"seg_{part}/seg_{part}/{name}/1.png" for part in ("train", "test") for name in ("sea", "street")),
                "seg_pred/seg_pred/1.png",
            ),
            "seg_pred, seg_test, seg_train, hold folders of the same names, sea, street",
        ),
        (
            ("Entrenamiento/cat/1.png", "Entrenamiento/dog/1.png", "Prueba/cat/1.png", "Prueba/dog/readme.txt"),
            "Entrenamiento, Prueba, hold folders of the same names, cat, dog",
        ),
        (("photos/cat/1.png", "photos/dog/1.png"), "holds one folder only, .*; give .*/photos, which has cat, dog"),
        (
            ("a/b/train/cat/1.png", "a/b/test/cat/1.png"),
            "holds one folder only, .*; give .*/a/b, which has test, train",
        ),
    ],
)
def test_layouts_that_do_not_tell_the_classes(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = read_image_folder(touch(tmp_path, *files))
    with pytest.raises(InputError, match=message):
        _ = folder.class_names
    assert len(folder.files(*folder.parts)) == len(files)


@pytest.mark.parametrize(
    "files",
    [
        ("cat/images/1.png", "dog/images/1.png"),
        ("cat/2023/1.png", "cat/2024/1.png", "dog/1.png", "dog/2024/1.png"),
        ("cat/day/1.png", "cat/night/1.png", "dog/day/1.png", "dog/dusk/1.png"),
    ],
)
def test_folders_inside_of_classes_are_no_classes(files: tuple[str, ...], tmp_path: Path) -> None:
    folder = read_image_folder(touch(tmp_path, *files))
    assert folder.class_names == ("cat", "dog")
    assert [name for _, name in folder.files("train")] == [file[:3] for file in files]


ACUTE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize(
    ("names", "known", "matched"),
    [
        (["dog", "cat"], ["cat", "dog"], {"dog": 1, "cat": 0}),
        (["Cat", "DOG"], ["cat", "dog"], {"Cat": 0, "DOG": 1}),
        (["dog"], ["cat", "dog"], {"dog": 1}),
        (["cat", "Cat"], ["cat", "dog"], {"cat": 0}),
        (["CAT"], ["cat", "Cat"], {}),
        (["Cat"], ["cat", "Cat"], {"Cat": 1}),
        (["CAT", "Cat"], ["cat", "dog"], {}),
        (["wolf", "cat "], ["cat", "dog"], {"cat ": 0}),
        ([unicodedata.normalize("NFD", ACUTE)], ["bar", ACUTE], {unicodedata.normalize("NFD", ACUTE): 1}),
        (["STRASSE"], ["stra\N{LATIN SMALL LETTER SHARP S}e"], {"STRASSE": 0}),
    ],
)
def test_names_are_matched_by_name_and_never_by_place(
    names: list[str], known: list[str], matched: dict[str, int]
) -> None:
    assert match_names(names, known) == matched
