from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from folders import CLUTTER, UNUSABLE, lay_out, write_clutter

from tnn_runtime import InputError
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.walk import Kind, read_tree, walk


def test_files_are_found_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a/1.png", "a.png", "a/b/2.png", ".hidden.png", ".cache/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert found == sorted(found)
    assert found == [tmp_path / name for name in ("a/1.png", "a/b/2.png", "a.png", "b.png")]


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_can_be_neither_read_nor_followed_is_named(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = UNUSABLE[name]
    folder = lay_out(photos, tmp_path / "photos", "cat", numbers=[0])
    make(folder / "cat", monkeypatch)
    root, unusable = read_tree(folder)
    assert root.below == [folder / "cat" / "0.png"]
    assert len(unusable) == 1 + (name == "links in a circle")
    assert all(re.search(message.replace("next/next", "next"), why) for why in unusable.values())
    with pytest.raises(InputError, match="cannot be used" if len(unusable) > 1 else message):
        find_images(folder)


def test_links_to_folders_are_followed(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    for name in ("one", "other"):
        (folder / "cat" / name).symlink_to(photos / "cat")
    (folder / "dog").symlink_to(photos / "dog")
    assert len(find_images(folder)) == 60


@pytest.mark.parametrize("place", CLUTTER)
def test_clutter_is_left_out_with_one_note(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("a", "b"):
        write_clutter(tmp_path / folder, place)
        (tmp_path / folder / "0.png").touch()
    root, unusable = read_tree(tmp_path)
    assert ([path.name for path in root.below], unusable) == (["0.png", "0.png"], {})
    assert list(root.folders["a"].folders) == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    first = tmp_path / "a" / Path(place).parts[0]
    assert (
        record.getMessage() == f"files and folders that other programs left behind are ignored: 2, the first is {first}"
    )


@pytest.mark.parametrize("name", ["Thumbs.db.png", "desktop", "MACOSX", "eaDir", "notes.txt"])
def test_what_only_looks_like_clutter_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert [(entry.path.name, entry.kind) for entry in walk(tmp_path)] == [(name, Kind.FILE)]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    ((path, kind, why),) = walk(tmp_path / "gone")
    assert (path, kind) == (tmp_path / "gone", Kind.UNUSABLE)
    assert "gone cannot be read (No such file or directory)" in why
