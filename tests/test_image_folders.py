"""What all commands make of a folder of images: training, import, export and prediction read it in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import RECIPE, Once
from folders import CLUTTER, UNUSABLE, lay_out, lay_out_splits, write_clutter

from tnn_export.__main__ import main as tnn_export
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_runtime.images.folders import find_images
from tnn_train import ImageData, ModelConfig, load_checkpoint, train
from tnn_train.__main__ import main as tnn_train


class Said(NamedTuple):
    """What a command ended with and printed."""

    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        return [line.partition(" note: ")[2] for line in self.err.splitlines() if ": note: " in line]


Command = Callable[..., Said]


@pytest.fixture
def best(data: ImageData, once: Once) -> Path:
    """A trained linear classifier of cats and dogs; read only."""
    model = ModelConfig(backbone="tiny", head="linear")
    return once("linear-of-folders", lambda folder: train(data, folder, model, RECIPE).best)


@pytest.fixture
def commands(best: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Command]:
    """The commands that read a folder of images, each as a function of it."""
    model = load_checkpoint(best).model
    state = {**model.backbone.state_dict(), **{f"fc.{name}": value for name, value in model.head.state_dict().items()}}
    torch.save(state, tmp_path / "net.pth")

    def call(main: Callable[[list[str]], int], *words: object) -> Said:
        return Said(main([str(word) for word in words]), *capsys.readouterr())

    out, tiny = tmp_path / "out", ("--backbone", "tiny")
    quick = (*tiny, "--epochs", 1, "--batch-size", 8, "--head", "linear")
    layer = (tmp_path / "net.pth", "--from", "linear", *tiny, "--image-size", 16)
    int8 = ("--formats", "onnx", "--precision", "int8")
    return {
        "train": lambda folder, *more: call(tnn_train, "--data", folder, "--out", out, *quick, *more),
        "import": lambda folder, *more: call(tnn_export, "import", *layer, "--images", folder, "-o", out, *more),
        "export": lambda folder: call(tnn_export, best, "-o", out, "--formats", "torchscript", "--images", folder),
        "calibrate": lambda folder: call(tnn_export, best, "-o", out, *int8, "--calibration", folder),
        "predict": lambda *paths: call(tnn_runtime, "predict", small_bundle, *paths, "--device", "cpu"),
    }


COMMANDS = ("train", "import", "export", "calibrate", "predict")


def accuracy(said: Said) -> str:
    """Return the last column of the table of an export."""
    return next(line for line in said.out.splitlines() if line.startswith("torchscript")).split()[-1]


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_read_is_a_named_error(
    command: str,
    name: str,
    commands: dict[str, Command],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = lay_out(photos, tmp_path / "photos", "cat", "dog", numbers=range(4))
    make, message = UNUSABLE[name]
    make(folder / "cat", monkeypatch)
    said = commands[command](folder)
    assert said.code == 1
    assert re.search(message, said.err)
    assert not (tmp_path / "out").exists()
    assert len(said.out.splitlines()) == (8 if command == "predict" else 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_clutter_is_told_in_one_note(command: str, commands: dict[str, Command], photos: Path, tmp_path: Path) -> None:
    folder = lay_out(photos, tmp_path / "photos", "cat", "dog")
    for place in CLUTTER:
        write_clutter(folder / "dog", place)
        write_clutter(folder, place)
    said = commands[command](folder)
    assert said.code == 0
    assert [note for note in said.notes if "behind" in note] == said.notes[:1]
    assert said.notes[0].startswith(
        f"files and folders that other programs left behind are ignored: {2 * len(CLUTTER)}, the first is "
    )


@pytest.mark.parametrize("name", ["labels.csv", "README", "classes.txt"])
@pytest.mark.parametrize("command", ["train", "import", "export"])
def test_what_is_no_image_may_lie_beside_class_folders(
    command: str, name: str, commands: dict[str, Command], photos: Path, tmp_path: Path
) -> None:
    folder = lay_out(photos, tmp_path / "photos", "cat", "dog")
    (folder / name).touch()
    said = commands[command](folder)
    assert (said.code, said.notes) == (0, [])


def test_a_prediction_goes_on_behind_an_empty_folder(
    commands: dict[str, Command], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = commands["predict"](tmp_path / "empty", photos / "cat" / "0.png")
    assert (said.code, len(said.out.splitlines())) == (1, 1)
    assert said.err.endswith(f"{tmp_path / 'empty'} has no files; expected images\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_linked_folders_are_followed(command: str, commands: dict[str, Command], photos: Path, tmp_path: Path) -> None:
    folder = lay_out(photos, tmp_path / "photos", "dog")
    (folder / "dog" / "more").symlink_to(lay_out(photos, tmp_path / "elsewhere", "dog", numbers=range(12, 16)))
    (folder / "cat").symlink_to(photos / "cat")
    said = commands[command](folder)
    assert said.code == 0
    if command == "predict":
        assert len(said.out.splitlines()) == 36
    if command == "train":
        assert "23 training, 6 validation and 7 test images of 2 classes" in said.out


@pytest.mark.parametrize("command", ["import", "export", "calibrate"])
def test_all_bad_images_are_told_at_once(
    command: str, commands: dict[str, Command], photos: Path, tmp_path: Path
) -> None:
    folder = lay_out(photos, tmp_path / "photos", "cat", "dog")
    bad = [folder / "cat" / f"{number}.png" for number in range(7)]
    for file in bad:
        file.write_bytes(file.read_bytes()[:200])
    said = commands[command](folder)
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert "7 of 24 files cannot be used: " in said.err
    assert all(str(file) in said.err for file in bad)


@pytest.mark.parametrize("name", [name for name in UNUSABLE if name != "links in a circle"])
def test_a_training_goes_on_without_them_on_request(
    name: str, commands: dict[str, Command], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(photos, tmp_path / "photos", "cat", "dog")
    make, message = UNUSABLE[name]
    make(folder / "cat", monkeypatch)
    said = commands["train"](folder, "--skip-unusable")
    assert said.code == 0
    (note,) = said.notes
    assert note.startswith("1 of 25 files cannot be used and are left out: ")
    assert re.search(message.removesuffix("; replace or remove it"), note)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["unusable_files"] == 1


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Valid"), ("training", "TESTING")])
class TestSplits:
    @pytest.fixture
    def folder(self, names: tuple[str, ...], photos: Path, tmp_path: Path) -> Path:
        return lay_out_splits(photos, tmp_path / "photos", *names)

    def test_an_import_takes_the_names_of_their_classes(
        self, folder: Path, commands: dict[str, Command], names: tuple[str, ...], tmp_path: Path
    ) -> None:
        said = commands["import"](folder)
        assert said.code == 0
        checkpoint = load_checkpoint(tmp_path / "out")
        assert checkpoint.class_names == ("cat", "dog")
        assert checkpoint.labels is not None
        held_out = len(names) - 1
        assert checkpoint.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * held_out
        used = " and ".join(str(folder / name) for name in names[1:])
        assert f"{folder} is split: only the images of {used} are used" in said.notes

    def test_an_export_compares_the_accuracy(
        self, folder: Path, commands: dict[str, Command], names: tuple[str, ...]
    ) -> None:
        said = commands["export"](folder)
        assert said.code == 0
        assert accuracy(said).endswith("%")
        (note,) = said.notes
        assert note.endswith("are used")
        assert names[0] not in note.removeprefix(str(folder))

    def test_an_int8_export_is_calibrated_on_training_images(
        self, folder: Path, commands: dict[str, Command], names: tuple[str, ...]
    ) -> None:
        said = commands["calibrate"](folder)
        assert said.code == 0
        assert said.notes == [f"{folder} is split: only the images of {folder / names[0]} are used"]

    def test_a_prediction_takes_all_files(
        self, folder: Path, commands: dict[str, Command], names: tuple[str, ...]
    ) -> None:
        said = commands["predict"](folder)
        assert (said.code, said.notes) == (0, [])
        assert len(said.out.splitlines()) == 16 + 8 * (len(names) - 1)


@pytest.mark.parametrize(
    ("places", "note", "compared"),
    [
        (("Cat=cat", "DOG=dog"), "differently from the model: 'Cat' counts as 'cat', 'DOG' counts as 'dog'", True),
        (
            ("cat", "dog", "wolf=dog"),
            "no accuracy is compared on 12 of 36 images: .* not named after a class: wolf; the classes are cat, dog",
            True,
        ),
        (("dog",), "", True),
        (("0=cat", "1=dog"), "no accuracy is compared on 24 of 24 images: .* not named after a class: 0, 1;", False),
        (("=cat",), "no accuracy is compared on 12 of 12 images: images of .* lie in no class folder", False),
        (("train/cat", "unlabeled=dog"), "no accuracy is compared .*has unlabeled beside train; expected train", False),
    ],
)
def test_an_export_tells_what_accuracy_it_compares(
    places: tuple[str, ...], note: str, compared: bool, commands: dict[str, Command], photos: Path, tmp_path: Path
) -> None:
    said = commands["export"](lay_out(photos, tmp_path / "photos", *places))
    assert said.code == 0
    assert accuracy(said).endswith("%") == compared
    assert len(said.notes) == bool(note)
    assert re.search(note, "".join(said.notes))


@pytest.mark.parametrize(
    "places",
    [
        ("train/cat", "unlabeled=dog"),
        ("train/cat", "val/cat", "dev/dog"),
        ("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"),
    ],
)
def test_a_calibration_with_all_images_of_unclear_splits_is_told(
    places: tuple[str, ...], commands: dict[str, Command], photos: Path, tmp_path: Path
) -> None:
    said = commands["calibrate"](lay_out(photos, tmp_path / "photos", *places))
    assert said.code == 0
    (note,) = said.notes
    assert note.startswith(f"all images of {tmp_path / 'photos'} are used, as its splits are not clear: ")


@pytest.mark.parametrize(
    ("places", "names", "labels", "note"),
    [
        (("dog", "cat"), "cat dog", [0] * 12 + [1] * 12, ""),
        (("dog",), "cat dog", [1] * 12, ""),
        (
            ("Dog=dog", "wolf=cat"),
            "cat dog",
            [1] * 12,
            "12 of 24 images are left out: .* after a class: wolf",
        ),
        (("0=cat", "1=dog"), "cat dog", None, "exports will compare no accuracy: .* not named after a class: 0, 1;"),
        (("train/cat", "train/dog", "test/dog"), "dog cat", [0] * 12, "only the images of .*/test are used"),
    ],
)
def test_labels_of_an_import_follow_the_names_of_folders(
    places: tuple[str, ...],
    names: str,
    labels: list[int] | None,
    note: str,
    commands: dict[str, Command],
    photos: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names.split()))
    said = commands["import"](lay_out(photos, tmp_path / "photos", *places), "--class-names", tmp_path / "names.txt")
    assert said.code == 0
    found = load_checkpoint(tmp_path / "out").labels
    assert (None if found is None else found.tolist()) == labels
    assert re.search(note, "".join(said.notes))


LAYOUTS: dict[str, tuple[str, ...]] = {
    "classes": ("cat", "dog"),
    "train test": ("train/cat", "train/dog", "test/cat", "test/dog"),
    "Train Valid Test": tuple(f"{split}/{name}" for split in ("Train", "Valid", "Test") for name in ("cat", "dog")),
    "training dev eval": tuple(f"{split}/{name}" for split in ("training", "dev", "eval") for name in ("cat", "dog")),
    "a folder between": ("cat/images=cat", "dog/images=dog"),
    "a class that is absent from val": ("train/cat", "train/dog", "val/dog"),
    "classes in other capitals": ("train/cat", "train/dog", "test/Cat=cat", "test/DOG=dog"),
    "clutter": ("cat", "dog", "__MACOSX/cat=cat", ".ipynb_checkpoints=dog", "cat/@eaDir=cat"),
    "a class named train": ("train=cat", "dog"),
    "links": ("elsewhere/cat", "elsewhere/dog"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_whole_way_with_many_layouts(
    name: str, commands: dict[str, Command], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for place in LAYOUTS[name]:
        split = place.split("/")[0].lower()
        held_out = split in ("test", "valid", "val", "dev", "eval")
        lay_out(photos, folder, place, numbers=range(12, 16) if held_out else range(12))
    if name == "links":
        (folder / "elsewhere").rename(tmp_path / "elsewhere")
        for kind in ("cat", "dog"):
            (folder / kind).symlink_to(tmp_path / "elsewhere" / kind)
    assert commands["train"](folder).code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    classes = ["dog", "train"] if "named train" in name else ["cat", "dog"]
    assert results["class_names"] == classes
    if name in ("clutter", "classes", "a folder between", "links"):
        assert results["images"] == {"train": 15, "val": 4, "test": 5}
    best, bundle = tmp_path / "out" / "best", tmp_path / "bundle"
    assert tnn_export([str(best), "-o", str(bundle), "--images", str(folder), "--formats", "onnx"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^onnx +fp32 +passed .*%$", table, re.MULTILINE), "the accuracy is compared"
    assert tnn_runtime(["predict", str(bundle), str(folder), "--format", "jsonl"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {answer["predictions"][0]["label"] for answer in answers} <= set(classes)
    assert len(answers) == len(find_images(folder))
