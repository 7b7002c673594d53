from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tnn_runtime import OutputExistsError, UsageError
from tnn_runtime.bundle.outputs import check_file, check_folder, refuse_among_images
from tnn_runtime.bundle.storage import FolderKind, new_folder, write_bytes, write_json

KIND = FolderKind("thing", "marker", ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "folder is a folder; choose another file for --json"),
        ("", "is a folder; choose another file"),
        ("nowhere/x.json", "x.json has no folder to lie in; make .*nowhere, or choose another file for --json"),
        ("file/x.json", "x.json has no folder to lie in; make .*file, or"),
        ("pipe", "pipe is a device or a pipe; choose another file for --json"),
        ("/dev/null", "null is a device or a pipe"),
        ("/proc/x.json", r"x.json cannot be made in /proc \(.*\); choose another file for --json"),
        ("x" * 250, r"cannot be made in .* \(File name too long\); choose another file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(place: str, message: str, folder: Path) -> None:
    with pytest.raises(OutputExistsError, match=message):
        check_file(folder / place, "--json")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file is a file; choose a folder for --plots"),
        ("pipe", "pipe is a file; choose a folder for --plots"),
        ("file/plots", r"plots cannot be made in .*file \(Not a directory\); choose another folder for --plots"),
        ("/proc", r"cannot be made in /proc \(.*\); choose another folder for --plots"),
        ("/proc/plots", r"plots cannot be made in /proc \("),
        ("x" * 250, r"cannot be made in .* \(File name too long\)"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_refused(place: str, message: str, folder: Path) -> None:
    with pytest.raises(OutputExistsError, match=message):
        check_folder(folder / place, "--plots")


@pytest.mark.parametrize("place", ["images", "images/run", "images/cat/run", "images/../images/run", "link/run"])
def test_a_folder_among_images_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    with pytest.raises(UsageError, match="lies among the images, in .*images, where it would be taken for a class"):
        refuse_among_images(tmp_path / place, None, tmp_path / "images")
    refuse_among_images(tmp_path / "images-bundle", None, tmp_path / "images")


def test_a_check_leaves_everything_as_it_was(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for place in ("x.json", "file", "folder/x.json"):
        check_file(folder / place, "--json")
    for place in ("folder", "new", "new/deep"):
        check_folder(folder / place, "--plots")
    assert sorted(folder.rglob("*")) == before
    assert (folder / "file").read_text() == "precious"
    with pytest.raises(
        OutputExistsError, match="file already exists; choose another file for --out or pass --overwrite"
    ):
        check_file(folder / "file", "--out", overwrite=False)


def fill(target: Path, lost: str) -> None:
    with new_folder(target, KIND) as temporary:
        (temporary / lost).write_text("lost")


def tell(target: Path) -> None:
    with new_folder(target, KIND) as temporary:
        raise RuntimeError(f"cannot write {temporary / 'model.onnx'}")


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda folder: write_json(folder / "nowhere" / "x.json", {}), "nowhere/x.json"),
        (lambda folder: write_bytes(folder / "file" / "x.json", b""), "file/x.json"),
        (lambda folder: write_bytes(folder / "folder", b""), "folder"),
        (lambda folder: fill(folder / "bundle", "nowhere/model.onnx"), "bundle/nowhere/model.onnx"),
        (lambda folder: tell(folder / "bundle"), "bundle/model.onnx"),
    ],
)
def test_errors_name_what_is_written_and_no_temporary_file(
    write: Callable[[Path], None], named: str, folder: Path
) -> None:
    with pytest.raises((OSError, RuntimeError), match=re.escape(str(folder / named))) as raised:
        write(folder)
    assert ".partial" not in str(raised.value)
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(folder / named)


def test_a_mount_point_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder / "folder")
    with (
        pytest.raises(
            OutputExistsError, match="folder is a mount point, which cannot be replaced; choose a folder in it"
        ),
        new_folder(folder / "folder", KIND, overwrite=True),
    ):
        pass
