"""Folders of images as people lay them out, for the tests of what reads them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def lay_out(photos: Path, folder: Path, *places: str, numbers: Iterable[int] = range(12)) -> Path:
    """Copy pictures into folders: ``a/b/cat`` gets cats, and so does ``a/b=cat``."""
    for place in places:
        target, _, kind = place.partition("=")
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            shutil.copy(photos / (kind or Path(target).name) / f"{number}.png", folder / target)
    return folder


def lay_out_splits(photos: Path, folder: Path, *names: str) -> Path:
    """Copy cats and dogs into splits of these names, others into each: 12 of either into the first."""
    for place, name in enumerate(names):
        numbers = range(8) if place == 0 else range(8 + 4 * (place - 1), 12 + 4 * (place - 1))
        lay_out(photos, folder, f"{name}/cat", f"{name}/dog", numbers=numbers)
    return folder


def _dangling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone.png").symlink_to(folder / "nowhere.png")


def _to_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "self.png").symlink_to(folder / "self.png")


def _loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "loop").symlink_to(folder.parent)


def _loop_of_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ours, theirs in (("one", "two"), ("two", "one")):
        (folder.parent / ours).mkdir()
        (folder.parent / ours / "next").symlink_to(folder.parent / theirs)


def _pipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.png")


def _socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the path of a socket has 108 characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")


def _device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "zero.png").symlink_to("/dev/zero")


def _shut_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shut, scandir = folder / "shut", os.scandir
    shut.mkdir()

    def refuse(path: str | Path | int = ".") -> object:
        if path == shut:  # The permissions of files do not hold for root, as whom tests may run.
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


UNUSABLE: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], str]] = {
    "dangling link": (_dangling, r"gone\.png is a link to .*nowhere\.png, which does not exist; replace or remove it"),
    "link to itself": (_to_itself, r"self\.png is a link that leads back to itself; replace or remove it"),
    "link to an outer folder": (_loop, "loop is a link back to .*, the folder that it lies in; replace or remove it"),
    "links in a circle": (_loop_of_two, "next/next is a link back to .*, the folder that it lies in"),
    "pipe": (_pipe, r"pipe\.png is a pipe, a socket or a device; expected an image file"),
    "socket": (_socket, r"socket\.png is a pipe, a socket or a device; expected an image file"),
    "link to a device": (_device, r"zero\.png is a pipe, a socket or a device; expected an image file"),
    "folder that is shut": (_shut_folder, r"shut cannot be read \(Permission denied\); make it readable, or remove it"),
}
"""What can stand in a folder of images and be no file: what makes it, and what is said of it."""

CLUTTER = (
    "Thumbs.db",
    "thumbs.DB",
    "Desktop.ini",
    "._0.png",
    "__MACOSX/cat/._0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    "@eaDir/0.png/thumb.jpg",
    "$RECYCLE.BIN/0.png",
    "__pycache__/x.pyc",
)
"""What other programs leave in folders."""


def write_clutter(folder: Path, place: str) -> None:
    """Write something that other programs leave."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_bytes(b"no image")
