from __future__ import annotations

import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision

from tnn_train import load_data
from tnn_train.errors import DataError


def write_idx(root: Path, counts: dict[str, int], name: str = "MNIST", classes: int = 10) -> None:
    """Write a small MNIST, or a set of the same form, in the official layout."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, count in counts.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
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


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path, {"train": 200, "t10k": 100}, "FashionMNIST")
    write_idx(tmp_path, {"train": 20, "t10k": 20})
    data = load_data("fashion-mnist", root=tmp_path)
    assert data.preprocessing.shape == (28, 28, 1)
    assert data.class_names[:2] == ("T-shirt/top", "Trouser")
    assert (len(data.train), len(data.val), len(data.test)) == (160, 40, 100)


def write_cifar(folder: Path, counts: dict[str, int], labels: str, classes: int) -> None:
    """Write pickled batches of random images as CIFAR has them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in counts.items():
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, labels: [number % classes for number in range(count)]}
        content |= {"coarse_labels": [number % 20 for number in range(count)]} if labels == "fine_labels" else {}
        (folder / name).write_bytes(pickle.dumps(content))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read files that are not the official ones."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)


@pytest.mark.usefixtures("any_checksum")
def test_cifar10_is_read_from_its_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    batches = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    write_cifar(folder, dict.fromkeys(batches, 20), "labels", 10)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    data = load_data("cifar10", root=tmp_path)
    assert data.class_names == tuple(names)
    assert data.preprocessing.shape == (32, 32, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (80, 20, 20)


@pytest.mark.usefixtures("any_checksum")
def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, {"train": 500, "test": 100}, "fine_labels", 100)
    names = [f"fine {number}" for number in range(100)]
    coarse = [f"coarse {number}" for number in range(20)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": coarse}))
    data = load_data("cifar100", root=tmp_path)
    assert data.class_names == tuple(names)
    assert data.preprocessing.shape == (32, 32, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (400, 100, 100)
    assert data.test.labels.tolist() == list(range(100))
    stored = pickle.loads((folder / "test").read_bytes())["data"][7].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(data.test.decoded(7), stored)


class TestFake:
    def test_it_is_made_to_measure(self) -> None:
        data = load_data("fake", image_size=24)
        assert data.preprocessing.shape == (24, 24, 3)
        assert (len(data.train), len(data.val), len(data.test)) == (800, 200, 200)
        assert len(data.class_names) == 10
        small = load_data("fake", limit=50)
        assert small.preprocessing.shape == (224, 224, 3)
        assert (len(small.train), len(small.val), len(small.test)) == (40, 10, 50)

    def test_the_seed_decides_every_image(self) -> None:
        one, same, other = (load_data("fake", image_size=24, limit=100, seed=seed) for seed in (0, 0, 1))
        assert np.array_equal(one.train.pixels, same.train.pixels)
        assert not np.array_equal(one.test.pixels, other.test.pixels)
        pixels = np.concatenate([one.train.pixels, one.val.pixels, one.test.pixels])
        assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == 200

    def test_it_can_be_learned(self) -> None:
        data = load_data("fake", image_size=24, limit=400)
        mean_colour = [part.pixels.mean((1, 2)) for part in (data.train, data.test)]
        spectrum = [np.abs(np.fft.rfft2(part.pixels.mean(3)))[:, :6, :6] for part in (data.train, data.test)]
        train, test = (
            np.concatenate([colour, shape.reshape(len(shape), -1) / 100], 1)
            for colour, shape in zip(mean_colour, spectrum, strict=True)
        )
        means = np.stack([train[data.train.labels == label].mean(0) for label in range(10)])
        nearest = np.linalg.norm(test[:, None] - means, axis=2).argmin(1)
        assert (nearest == data.test.labels).mean() > 0.9


def test_real_mnist(data_root: Path) -> None:
    data = load_data("mnist", root=data_root)
    assert len(data.train) + len(data.val) == 60_000
    assert len(data.test) == 10_000
    assert data.preprocessing.mean == pytest.approx([0.1307], abs=0.005)
    assert data.preprocessing.std == pytest.approx([0.3081], abs=0.005)


class TestBadInput:
    def test_data_that_is_not_on_disk(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"MNIST cannot be read under .*pass --data-root FOLDER, or --download"):
            load_data("mnist", root=tmp_path)

    def test_truncated_idx_file(self, tmp_path: Path) -> None:
        write_idx(tmp_path, {"train": 50, "t10k": 50})
        path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DataError, match=r"MNIST cannot be read under .*; a file there is damaged"):
            load_data("mnist", root=tmp_path)

    def test_labels_that_are_no_classes(self, tmp_path: Path) -> None:
        write_idx(tmp_path, {"train": 50, "t10k": 50}, classes=12)
        with pytest.raises(
            DataError, match="image 10 of the train set of mnist has the label 10; expected 0 to 9; get the data again"
        ):
            load_data("mnist", root=tmp_path)

    def test_another_number_of_labels_than_images(self, tmp_path: Path) -> None:
        write_idx(tmp_path, {"train": 50, "t10k": 50})
        (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 3) + bytes(3))
        with pytest.raises(DataError, match="the test set of mnist has 50 images and 3 labels"):
            load_data("mnist", root=tmp_path)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        write_idx(tmp_path, {"train": 50, "t10k": 50})
        (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(bytes(100))
        with pytest.raises(DataError, match="MNIST cannot be read under .*; a file there is damaged or could not be"):
            load_data("mnist", root=tmp_path)

    def test_files_that_are_not_the_official_ones(self, tmp_path: Path) -> None:
        write_cifar(tmp_path / "cifar-100-python", {"train": 200, "test": 100}, "fine_labels", 100)
        with pytest.raises(DataError, match=r"CIFAR100 cannot be read under .*not found or corrupted"):
            load_data("cifar100", root=tmp_path)
