from __future__ import annotations

import pickle
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from tnn_runtime import InputError, UsageError
from tnn_train import ImageData, load_data
from tnn_train import data as data_module
from tnn_train.errors import DataError


def shares(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels) / len(labels)


def test_digits_are_split_by_seed_disjoint_and_stratified() -> None:
    one, same, other = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    sets = (one.train, one.val, one.test)
    assert sum(map(len, sets)) == 1797
    assert [len(part) for part in sets] == [1150, 288, 359]
    for part in sets:
        np.testing.assert_allclose(shares(part.labels), 0.1, atol=0.012)
    for ours, theirs, different in zip(
        sets, (same.train, same.val, same.test), (other.train, other.val, other.test), strict=True
    ):
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert not np.array_equal(ours.pixels, different.pixels)
    addresses = [source.__array_interface__["data"][0] for part in sets for source in part.sources]
    assert len(set(addresses)) == 1797
    assert one.preprocessing.shape == (16, 16, 1)
    pixels = one.train.pixels / 255
    assert one.preprocessing.mean == pytest.approx([pixels.mean()], rel=1e-3)
    assert one.preprocessing.std == pytest.approx([pixels.std()], rel=1e-3)


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


def test_large_sets_are_decoded_when_needed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_data(photos)
    monkeypatch.setattr(data_module, "CACHE_BYTES", 0)
    lazy = load_data(photos)
    assert lazy.train.pixels is None
    assert np.array_equal(lazy.train.sample(100), kept.train.pixels)


def test_augmentation_changes_training_images_only(data: ImageData) -> None:
    shifted = data.train.augmented("crop-flip")
    changed = [not np.array_equal(shifted[0][0].numpy(), data.train.decoded(0)) for _ in range(10)]
    assert any(changed)
    assert shifted[0][0].shape == data.train[0][0].shape
    assert np.array_equal(data.train.augmented("none")[0][0].numpy(), data.train.decoded(0))


def write_idx(root: Path, counts: dict[str, int]) -> None:
    """Write a small MNIST in the official layout."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, count in counts.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())


def test_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path, {"train": 200, "t10k": 100})
    data = load_data("mnist", root=tmp_path)
    assert data.preprocessing.shape == (28, 28, 1)
    assert (len(data.train), len(data.val), len(data.test)) == (160, 40, 100)
    limited = load_data("mnist", root=tmp_path, limit=50)
    assert (len(limited.train), len(limited.val), len(limited.test)) == (40, 10, 50)
    assert Counter(limited.test.labels.tolist()) == dict.fromkeys(range(10), 5)


def test_cifar10_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        content = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    data = load_data("cifar10", root=tmp_path)
    assert data.class_names == tuple(names)
    assert data.preprocessing.shape == (32, 32, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (80, 20, 20)


def test_real_mnist(data_root: Path) -> None:
    data = load_data("mnist", root=data_root)
    assert len(data.train) + len(data.val) == 60_000
    assert len(data.test) == 10_000
    assert data.preprocessing.mean == pytest.approx([0.1307], abs=0.005)
    assert data.preprocessing.std == pytest.approx([0.3081], abs=0.005)


def test_real_cifar10_jpeg_folder(data_root: Path, tmp_path: Path) -> None:
    with tarfile.open(data_root / "cifar10-jpeg.tar.gz") as tar:
        members = [m for m in tar.getmembers() if m.isfile() and int(Path(m.name).stem) < 20]
        tar.extractall(tmp_path, members, filter="data")
    data = load_data(tmp_path)
    assert len(data.class_names) == 10
    assert (len(data.train), len(data.val), len(data.test)) == (160, 40, 200)
    assert data.preprocessing.shape == (32, 32, 3)


class TestBadInput:
    def test_unknown_name(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="unknown data 'cifar11': no such folder.*choose from digits, mnist, cifar10"
        ):
            load_data("cifar11")

    def test_data_that_is_not_on_disk(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"MNIST cannot be read under .*pass --data-root FOLDER, or --download"):
            load_data("mnist", root=tmp_path)

    def test_truncated_idx_file(self, tmp_path: Path) -> None:
        write_idx(tmp_path, {"train": 50, "t10k": 50})
        path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DataError, match="MNIST cannot be read"):
            load_data("mnist", root=tmp_path)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has 0 class folders; expected at least 2"):
            load_data(tmp_path)

    def test_one_class(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        with pytest.raises(DataError, match="has 1 class folders; expected at least 2"):
            load_data(tmp_path)

    def test_class_without_images(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "cat").symlink_to(photos / "cat")
        (tmp_path / "dog").mkdir()
        with pytest.raises(DataError, match=r"class folder .*dog is missing or has no images"):
            load_data(tmp_path)

    def test_file_that_is_no_image_is_named(self, photos: Path, tmp_path: Path) -> None:
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
        with pytest.raises(DataError, match="test has classes that .*train lacks: wolf"):
            load_data(tmp_path)

    @pytest.mark.parametrize("stray", ["valid", "holdout"])
    def test_folders_beside_the_splits(self, photos: Path, tmp_path: Path, stray: str) -> None:
        for part in ("train", "test", stray):
            (tmp_path / part).mkdir()
            for name in ("cat", "dog"):
                (tmp_path / part / name).symlink_to(photos / name)
        with pytest.raises(DataError, match=f"has {stray} beside train; expected train, test and optionally val"):
            load_data(tmp_path)

    def test_a_class_of_one_split_is_missing(self, photos: Path, tmp_path: Path) -> None:
        for part, name in (("train", "cat"), ("train", "dog"), ("test", "cat")):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / name).symlink_to(photos / name)
        with pytest.raises(DataError, match=r"class folder .*test/dog is missing or has no images"):
            load_data(tmp_path)

    @pytest.mark.parametrize("option", ["limit", "image_size"])
    def test_numbers_out_of_range(self, option: str) -> None:
        with pytest.raises(UsageError, match=f"{option} is 0; expected at least 1"):
            load_data("digits", **{option: 0})

    def test_limit_below_the_number_of_classes(self) -> None:
        with pytest.raises(DataError, match="cannot be split so that every class is on both sides.*another --limit"):
            load_data("digits", limit=5)
