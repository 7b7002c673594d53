"""All files that cannot be used are told at once, or left out on request."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from folders import CLUTTER, UNUSABLE, lay_out, write_clutter

from tnn_runtime import InputError
from tnn_train import ModelConfig, TrainConfig, load_data, train
from tnn_train.data import load as load_module
from tnn_train.errors import DataError


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def write_html(file: Path) -> None:
    file.write_text("<html>404</html>")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:10])


FAULTS = {"truncated": truncate, "another format": write_html, "empty": empty, "without a header": cut_header}


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return lay_out(photos, tmp_path / "photos", "cat", "dog")


@pytest.fixture(params=[True, False], ids=["in memory", "decoded when needed"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether decoded images are kept."""
    if not request.param:
        monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    return bool(request.param)


@pytest.mark.parametrize("faults", [["truncated"], ["another format", "empty"], [*FAULTS]], ids=str)
def test_all_of_them_are_told_at_once(faults: list[str], folder: Path, cache: bool) -> None:
    bad = [folder / name / f"{number}.png" for name in ("cat", "dog") for number in range(4)]
    for place, file in enumerate(bad):
        FAULTS[faults[place % len(faults)]](file)
    (folder / "dog" / "notes.txt").write_text("woof")
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(InputError) as caught:
        load_data(folder)
    message = str(caught.value)
    assert message.startswith("10 of 26 files cannot be used: ")
    assert all(str(file) in message for file in (*bad, folder / "dog" / "notes.txt", folder / "dog" / "gone.png"))
    assert message.endswith(
        "; replace or remove them, or pass --skip-unusable (skip_unusable=True) to go on without such files"
    )
    data = load_data(folder, skip_unusable=True)
    assert len(data.unusable) == 10
    sets = (data.train, data.val, data.test)
    assert sum(map(len, sets)) == 16
    assert not {*data.unusable} & {source for part in sets for source in part.sources}
    assert all((part.pixels is not None) == cache for part in sets)


def test_those_that_a_limit_leaves_out_are_not_decoded(folder: Path) -> None:
    for number in range(6):
        truncate(folder / "cat" / f"{number}.png")
    data = load_data(folder, limit=4, skip_unusable=True)
    assert len(data.train) + len(data.val) == 4
    assert all(data.train.decoded(index).any() for index in range(len(data.train)))


@pytest.mark.parametrize("name", UNUSABLE)
def test_so_is_what_is_no_file(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = UNUSABLE[name]
    make(folder / "cat", monkeypatch)
    if name == "links in a circle":
        message = "2 of .* files cannot be used"
    with pytest.raises((InputError, DataError), match=message):
        load_data(folder)


@pytest.mark.parametrize("place", CLUTTER)
def test_clutter_is_no_class_and_no_image(place: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for where in (folder, folder / "cat"):
        write_clutter(where, place)
    data = load_data(folder)
    assert data.class_names == ("cat", "dog")
    assert sum(map(len, (data.train, data.val, data.test))) == 24
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "files and folders that other programs left behind are ignored: 2, the first is "
    )


def test_a_class_that_is_lost_is_told(folder: Path) -> None:
    for number in range(12):
        truncate(folder / "dog" / f"{number}.png")
    with pytest.raises(DataError, match="no image of the class 'dog' can be used to train on; add some, or remove"):
        load_data(folder, skip_unusable=True)
    with pytest.raises(InputError, match="12 of 24 files cannot be used"):
        load_data(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_results_of_a_training_list_them(fault: str, folder: Path, tmp_path: Path) -> None:
    bad = folder / "cat" / "3.png"
    FAULTS[fault](bad)
    data = load_data(folder, skip_unusable=True)
    config = TrainConfig(epochs=1, batch_size=8, augment=())
    train(data, tmp_path / "run", ModelConfig(backbone="tiny", head="linear"), config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["unusable_files"] == 1
    assert results["config"]["data"]["skip_unusable"] is True
    ((path, why),) = results["unusable"].items()
    assert path == str(bad)
    assert re.match(f"{bad} (is not an image that can be read|cannot be decoded) ", why)


@pytest.mark.parametrize(("rank", "skip", "found"), [("0", False, True), ("1", False, False), ("1", True, True)])
def test_of_several_processes_one_looks_for_all(
    rank: str, skip: bool, found: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    for name, value in (("TORCHELASTIC_RUN_ID", "run"), ("RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    bad = load_data(folder).test.sources[0]
    assert isinstance(bad, Path)
    truncate(bad)
    if found and not skip:
        with pytest.raises(InputError, match=f"{bad} cannot be decoded"):
            load_data(folder)
        return
    data = load_data(folder, skip_unusable=skip)
    assert len(data.unusable) == found
    assert sum(map(len, (data.train, data.val, data.test))) == 24 - found
