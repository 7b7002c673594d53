from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tnn_runtime import ArtifactError, OutputExistsError
from tnn_runtime.bundle.reading import OpenFolder, read_arrays, read_folder, read_json
from tnn_runtime.bundle.storage import (
    FolderKind,
    describe_files,
    new_folder,
    write_text,
)

THING = FolderKind("thing", "file", ("other-*",))


def fill(folder: Path, text: str) -> None:
    (folder / "file").write_text(text)


def test_a_folder_appears_when_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with new_folder(target, THING) as folder:
        fill(folder, "new")
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with new_folder(tmp_path / "target", THING) as folder:
            fill(folder, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_overwriting_must_be_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fill(target, "old")
    with pytest.raises(OutputExistsError, match="target already exists"), new_folder(target, THING):
        pass
    with pytest.raises(RuntimeError), new_folder(target, THING, overwrite=True):
        raise RuntimeError
    assert (target / "file").read_text() == "old"
    with new_folder(target, THING, overwrite=True) as folder:
        fill(folder, "new")
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_something_else_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with (
        pytest.raises(
            OutputExistsError,
            match="target already exists and has no file, so it is something else",
        ),
        new_folder(target, THING, overwrite=True),
    ):
        pass
    assert (target / "thesis.txt").read_text() == "precious"
    with pytest.raises(OutputExistsError), new_folder(target / "thesis.txt", THING, overwrite=True):
        pass
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", THING, overwrite=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "empty" / "file").exists()


def test_what_a_kill_left_behind_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".target.abc.partial").mkdir()
    other = tmp_path / ".target.v2.abc.partial"
    other.mkdir()
    with new_folder(tmp_path / "target", THING) as folder:
        fill(folder, "new")
    assert set(tmp_path.iterdir()) == {tmp_path / "target", other}


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    """It is refused at the end, since another one was faster."""
    target = tmp_path / "target"

    def make(text: str, meanwhile: Callable[[], None]) -> None:
        with new_folder(target, THING) as folder:
            fill(folder, text)
            meanwhile()

    with pytest.raises(OutputExistsError, match="already exists"):
        make("slow", lambda: make("fast", lambda: None))
    assert (target / "file").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("strange", ["thesis.txt", "photos/cat.png", ".git/config", "file.bak"])
def test_what_nobody_wrote_who_makes_such_folders_is_never_deleted(strange: str, tmp_path: Path) -> None:
    with new_folder(tmp_path / "target", THING) as folder:
        fill(folder, "old")
        (folder / "other-1").write_text("ours")
    precious = tmp_path / "target" / strange
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    name = strange.partition("/")[0]
    with (
        pytest.raises(OutputExistsError, match=f"target has {re.escape(name)} in it, which --overwrite would delete"),
        new_folder(tmp_path / "target", THING, overwrite=True),
    ):
        pass
    assert precious.read_text() == "precious"
    assert (tmp_path / "target" / "file").read_text() == "old"


def test_the_current_folder_can_be_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fill(target, "old")
    monkeypatch.chdir(target)
    with new_folder(Path("."), THING, overwrite=True) as folder:
        fill(folder, "new")
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / "text", text)
        assert (tmp_path / "text").read_text() == text
    assert list(tmp_path.iterdir()) == [tmp_path / "text"]


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "target", THING):
        pass
    assert (tmp_path / "target").read_text() == "precious"


def test_the_predecessor_is_read_after_an_interrupted_overwrite(tmp_path: Path) -> None:
    (tmp_path / ".target.previous").mkdir()
    fill(tmp_path / ".target.previous", "old")
    assert read_folder(tmp_path / "target", THING, lambda folder: folder.path) == tmp_path / ".target.previous"


@pytest.mark.parametrize(
    "name", ["../file", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "C:file", "file\n"]
)
def test_names_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="not a plain name inside the folder"):
        OpenFolder(tmp_path, THING).verify({name: {"size": 0, "sha256": ""}})


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").symlink_to(tmp_path / "file")
    with pytest.raises(ArtifactError, match="missing or not a regular file"):
        OpenFolder(inside, THING).verify(describe_files(tmp_path, ["file"]))


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"schema_version": true}', '{"schema_version": 0}', "\xff"])
def test_json_that_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError):
        read_json(tmp_path / "manifest.json", "bundle", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "cannot be read .*nowhere"),
        ("words", "has no array of numbers called words; make it again"),
        ("moments", "has no array of numbers called moments"),
        ("raw", "has no array of numbers called raw"),
        ("huge", "cannot be read"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, words=np.array(["a"]), moments=np.zeros(1, "M8[s]"), numbers=np.zeros(1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("raw.npy", b"no array")
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000000,), }".ljust(117) + b"\n"
        archive.writestr("huge.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert set(read_arrays(path, "numbers", "words", text=["words"])) == {"numbers", "words"}
    with pytest.raises(ArtifactError, match=message):
        read_arrays(path, name)
    with pytest.raises(ArtifactError, match="no array of text called numbers"):
        read_arrays(path, "numbers", text=["numbers"])
