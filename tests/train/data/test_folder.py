from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from folders import lay_out, lay_out_splits
from PIL import Image

from tnn_runtime import InputError
from tnn_train import ImageData, load_data
from tnn_train.data import load as load_module
from tnn_train.errors import DataError


def test_a_folder_has_its_class_names_and_rgb_pixels(photos: Path, data: ImageData) -> None:
    assert data.class_names == ("cat", "dog")
    assert data.preprocessing.shape == (16, 16, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (26, 6, 8)
    source = data.test.sources[0]
    assert isinstance(source, Path)
    assert source.parent.name == data.class_names[data.test.labels[0]]
    image, label = data.test[0]
    assert np.array_equal(image.numpy(), data.preprocessing(source))
    assert label == data.test.labels[0]


def test_splits_that_come_as_folders_are_kept(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for name in ("cat", "dog"):
            (tmp_path / part / name).symlink_to(photos / name)
    data = load_data(tmp_path)
    assert len(data.test) == 40
    assert len(data.train) + len(data.val) == 40
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("Train", "Valid", "Test"), (16, 8, 8)),
        (("training", "validation", "testing"), (16, 8, 8)),
        (("TRAIN", "dev", "eval"), (16, 8, 8)),
        (("Training", "Testing"), (13, 3, 8)),
        (("train", "VAL"), (13, 8, 3)),
    ],
)
def test_splits_have_many_names(
    names: tuple[str, ...], sizes: tuple[int, int, int], photos: Path, tmp_path: Path
) -> None:
    data = load_data(lay_out_splits(photos, tmp_path / "photos", *names))
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == sizes


@pytest.mark.parametrize(
    ("split", "folders", "labels"),
    [
        ("test", ("dog",), {1}),
        ("Valid", ("cat",), {0}),
        ("val", ("dog=dog", "cat"), {0, 1}),
        ("testing", ("Dog=dog", "CAT=cat"), {0, 1}),
        ("dev", ("DOG=dog",), {1}),
    ],
)
def test_labels_follow_the_names_of_folders(
    split: str,
    folders: tuple[str, ...],
    labels: set[int],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = lay_out(photos, tmp_path / "photos", "train/cat", "train/dog", numbers=range(8))
    lay_out(photos, folder, *(f"{split}/{name}" for name in folders), numbers=range(8, 12))
    data = load_data(folder)
    part = data.test if "est" in split else data.val
    assert set(part.labels.tolist()) == labels
    for source, label in zip(part.sources, part.labels, strict=True):
        assert source.parent.name.lower() == data.class_names[label]
    notes = [record.getMessage() for record in caplog.records]
    missing = [note for note in notes if "set has no image of 1 of 2 classes, and says nothing of them: " in note]
    assert [note.split()[-1] for note in missing] == [
        name for place, name in enumerate(("cat", "dog")) if place not in labels
    ]
    renamed = [note for note in notes if "spells class names differently from" in note]
    assert len(renamed) == any(name[0].isupper() for name in folders)


def test_real_cifar10_jpeg_folder(data_root: Path, tmp_path: Path) -> None:
    with tarfile.open(data_root / "cifar10-jpeg.tar.gz") as tar:
        members = [m for m in tar.getmembers() if m.isfile() and int(Path(m.name).stem) < 20]
        tar.extractall(tmp_path, members, filter="data")
    data = load_data(tmp_path)
    assert len(data.class_names) == 10
    assert (len(data.train), len(data.val), len(data.test)) == (160, 40, 200)
    assert data.preprocessing.shape == (32, 32, 3)


class TestBadInput:
    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has 0 class folders and 0 files beside them; expected at least 2"):
            load_data(tmp_path)

    def test_one_class(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        with pytest.raises(DataError, match="has 1 class folders and 0 files beside them; expected at least 2"):
            load_data(tmp_path)

    @pytest.mark.parametrize("empty", [("dog",), ("ant", "dog"), ("dog/.ipynb_checkpoints", "wolf/pack")])
    def test_classes_without_images_are_told_at_once(
        self, empty: tuple[str, ...], photos: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "cat").symlink_to(photos / "cat")
        for name in empty:
            (tmp_path / name).mkdir(parents=True)
        names = ", ".join(name.split("/")[0] for name in empty)
        with pytest.raises(DataError, match=f"has class folders without images: {names}; add images to them"):
            load_data(tmp_path)

    @pytest.mark.parametrize("twin", ["CAT", "Cat", "cat "])
    @pytest.mark.parametrize("split", ["", "train/"])
    def test_classes_that_look_alike_are_told(
        self, twin: str, split: str, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = lay_out(photos, tmp_path / "photos", f"{split}cat", f"{split}dog", f"{split}{twin}=dog")
        assert len(load_data(folder).class_names) == 3
        (note,) = [record.getMessage() for record in caplog.records if "look alike" in record.getMessage()]
        assert " and ".join(sorted(("cat", twin))) in note
        assert "dog" not in note

    @pytest.mark.parametrize("cache_bytes", [0, load_module.CACHE_BYTES])
    def test_file_that_is_no_image_is_named(
        self, cache_bytes: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load_module, "CACHE_BYTES", cache_bytes)
        (tmp_path / "cat").symlink_to(photos / "cat")
        (tmp_path / "dog").mkdir()
        (tmp_path / "dog" / "notes.txt").write_text("woof")
        with pytest.raises(InputError, match=r"dog/notes.txt is not an image"):
            load_data(tmp_path)

    def test_truncated_image_is_named(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "cat").symlink_to(photos / "cat")
        (tmp_path / "dog").mkdir()
        for number in range(10):
            content = (photos / "dog" / f"{number}.png").read_bytes()
            (tmp_path / "dog" / f"{number}.png").write_bytes(content[: len(content) // 2] if number == 3 else content)
        with pytest.raises(InputError, match=r"dog/3.png cannot be decoded"):
            load_data(tmp_path)

    def test_hidden_files_are_left_out(self, photos: Path, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            (tmp_path / name / ".DS_Store").write_bytes(b"\0")
            for number in range(10):
                (tmp_path / name / f"{number}.png").symlink_to(photos / name / f"{number}.png")
        assert len(load_data(tmp_path).test) == 4

    @pytest.mark.parametrize("split", [False, True])
    def test_images_beside_the_class_folders_are_told(
        self, split: bool, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "photos"
        parts = [folder / "train", folder / "test"] if split else [folder]
        for part in parts:
            shutil.copytree(photos, part)
        for stray in ("b.JPG", ".c.png", "labels.csv"):
            (parts[-1] / stray).touch()
        shutil.copy(photos / "cat" / "0.png", folder / "a.png")
        load_data(folder)
        (record,) = [record for record in caplog.records if record.name == "tnn_train.data.folder"]
        assert record.getMessage().startswith(
            f"images beside the class folders are not used: 2, the first is {folder / 'a.png'}; move them"
        )

    def test_too_few_images_to_split(self, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
        with pytest.raises(DataError, match=r"2 images of 2 classes \(1 of 'cat'\) cannot be split"):
            load_data(tmp_path)

    def test_test_classes_that_training_lacks(self, photos: Path, tmp_path: Path) -> None:
        for part, name in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "wolf")):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / name).symlink_to(photos / ("cat" if name == "cat" else "dog"))
        with pytest.raises(
            DataError, match="test has classes that .*train lacks: wolf; add images of them to .*train, or remove them"
        ):
            load_data(tmp_path)

    @pytest.mark.parametrize("stray", ["unlabeled", "holdout"])
    def test_folders_beside_the_splits(self, photos: Path, tmp_path: Path, stray: str) -> None:
        for part in ("train", "test", stray):
            (tmp_path / part).mkdir()
            for name in ("cat", "dog"):
                (tmp_path / part / name).symlink_to(photos / name)
        with pytest.raises(DataError, match=f"has {stray} beside train; expected train, test and optionally val"):
            load_data(tmp_path)

    @pytest.mark.parametrize(("flat", "other"), [("test", "val"), ("Valid", "test"), ("eval", "dev")])
    def test_a_split_without_class_folders(self, flat: str, other: str, photos: Path, tmp_path: Path) -> None:
        folder = lay_out_splits(photos, tmp_path / "photos", "train", other)
        lay_out(photos, folder, f"{flat}=cat")
        with pytest.raises(
            DataError,
            match=f"{flat} has no class folders and 12 files; expected a folder for each class, as in .*train",
        ):
            load_data(folder)

    def test_splits_without_one_to_train_on(self, photos: Path, tmp_path: Path) -> None:
        folder = lay_out_splits(photos, tmp_path / "photos", "Valid", "test")
        with pytest.raises(DataError, match="has val and test, and no train; expected images to train on, in .*train"):
            load_data(folder)
