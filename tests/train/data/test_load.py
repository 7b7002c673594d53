from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnn_runtime import UsageError
from tnn_runtime.errors import ArtifactError
from tnn_train import DataConfig, ImageData, load_data
from tnn_train.data import load as load_module
from tnn_train.data.config import recorded_data
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


def test_large_sets_are_decoded_when_needed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_data(photos)
    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    lazy = load_data(photos)
    assert lazy.train.pixels is None
    assert np.array_equal(lazy.train.sample(100), kept.train.pixels)


def test_a_configuration_carries_all_options(photos: Path) -> None:
    options = {"image_size": (12, 8), "fit": "pad", "background": (0, 9, 255), "mean": (0.5,), "std": (0.2, 0.3, 1.0)}
    config = DataConfig(str(photos), limit=20, seed=3, **options)
    data = load_data(config)
    same = load_data(photos, limit=20, seed=3, **options)
    assert data.config == same.config == config
    assert np.array_equal(data.train.pixels, same.train.pixels)
    assert data.preprocessing == same.preprocessing
    assert DataConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_other_statistics_share_the_pixels(data: ImageData) -> None:
    other = data.normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name in ("train", "val", "test"):
        ours, theirs = getattr(other, name), getattr(data, name)
        assert ours.pixels is theirs.pixels
        assert ours.preprocessing is other.preprocessing
    assert other.preprocessing == dataclasses.replace(
        data.preprocessing, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert (other.config, other.class_names) == (data.config, data.class_names)
    with pytest.raises(ArtifactError, match="1 means and 1 deviations for 3 channels"):
        data.normalized((0.5,), (0.5,))


class TestBadInput:
    @pytest.mark.parametrize("name", ["cifar11", ""])
    def test_unknown_name(self, name: str) -> None:
        with pytest.raises(
            UsageError, match=f"unknown data '{name}': no such folder.*choose from digits, mnist, .*cifar10, cifar100"
        ):
            load_data(DataConfig(name))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "limit is 0; expected at least 1"),
            ({"limit": 2.5}, "limit is 2.5; expected at least 1"),
            ({"image_size": 0}, "image_size is 0; expected 1 to 7071"),
            ({"image_size": 8000}, "image_size is 8000; expected 1 to 7071"),
            ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
            ({"seed": True}, "seed is True; expected 0 to 4294967295"),
            ({"download": "yes"}, "download is 'yes'; expected True or False"),
            ({"crop_to_boxes": 1}, "crop_to_boxes is 1; expected True or False"),
            ({"root": None}, "root is None; expected text"),
            ({"source": Path("photos")}, "source is .*; expected text"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            DataConfig(**{"source": "digits", **options})

    def test_a_configuration_and_options_beside_it(self) -> None:
        with pytest.raises(UsageError, match="got a DataConfig and options beside it"):
            load_data(DataConfig("digits"), limit=100)

    def test_boxes_where_there_are_none(self, photos: Path) -> None:
        for source in ("digits", photos):
            with pytest.raises(UsageError, match=f"{source} has no bounding boxes to crop to; only nabirds has"):
                load_data(source, crop_to_boxes=True)

    def test_limit_below_the_number_of_classes(self) -> None:
        with pytest.raises(DataError, match="cannot be split so that every class is on both sides.*another --limit"):
            load_data("digits", limit=5)


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_a_folder_with_the_name_of_a_data_set_is_told(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    load_data(name, limit=200, image_size=16)
    assert not caplog.records
    Path(name).symlink_to(photos, target_is_directory=True)
    load_data(name, limit=200, image_size=16)
    assert f"{name} is the data set of that name; for the folder {name}, give ./{name}" in caplog.text
    assert load_data(f"./{name}").class_names == ("cat", "dog")


def test_a_folder_that_the_data_set_lies_in_is_not_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nabirds").mkdir()
    with pytest.raises(DataError, match="NABirds cannot be read"):
        load_data("nabirds", root=".")
    assert not caplog.records
    with pytest.raises(DataError, match="NABirds cannot be read"):
        load_data("nabirds")
    assert "nabirds is the data set of that name" in caplog.text


@pytest.mark.parametrize(
    "config", [{}, {"data": None}, {"data": {}}, {"data": {"source": 3}}, {"data": {"source": "digits", "strange": 1}}]
)
def test_a_configuration_that_does_not_tell_its_data_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"runs/photos does not tell its data \(.*\); train again"):
        recorded_data(config, "runs/photos")


def test_a_configuration_tells_its_data_and_may_be_changed() -> None:
    config = json.loads(json.dumps({"data": dataclasses.asdict(DataConfig("digits", seed=3))}))
    assert recorded_data(config, "runs/photos") == DataConfig("digits", seed=3)
    assert recorded_data(config, "runs/photos", root="elsewhere") == DataConfig("digits", root="elsewhere", seed=3)
