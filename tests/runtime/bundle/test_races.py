"""Bundles and checkpoints that another process replaces while they are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tnn_runtime import ArtifactError, Classifier, Manifest
from tnn_runtime.bundle.manifest import BUNDLE, ONNX_FILE
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.bundle.reading import OpenFolder, read_folder
from tnn_runtime.bundle.storage import new_folder

REPLACE = """
import shutil, sys
from pathlib import Path
from tnn_runtime.bundle.manifest import BUNDLE
from tnn_runtime.bundle.storage import new_folder
target, *versions = map(Path, sys.argv[1:])
print("begins", flush=True)
while True:
    for version in versions:
        with new_folder(target, BUNDLE, overwrite=True) as folder:
            shutil.copytree(version, folder, dirs_exist_ok=True)
"""


@pytest.fixture
def versions(bundles: dict[str, Path], tmp_path: Path) -> list[Path]:
    """Two bundles that differ in their model and in the order of their classes."""
    first, second = (shutil.copytree(bundles[head], tmp_path / head) for head in ("tversky", "linear"))
    manifest, _ = Manifest.read(second)
    changed = {**vars(manifest), "class_names": manifest.class_names[::-1]}
    Manifest(**changed).write(second)
    return [first, second]


@contextmanager
def replacing(target: Path, versions: list[Path]) -> Iterator[None]:
    """Let another process replace a bundle by these versions in turn, as fast as it can."""
    program = [sys.executable, "-c", REPLACE, str(target), *map(str, versions)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize("loads", [300, pytest.param(5000, marks=pytest.mark.exhaustive)])
def test_a_bundle_that_is_replaced_is_loaded_whole(loads: int, versions: list[Path], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = {}
    for version in versions:
        with Classifier.load(version, "cpu", threads=1) as classifier:
            expected[tuple(classifier.info["class_names"])] = classifier.logits(images)
    target = shutil.copytree(versions[0], tmp_path / "bundle")
    served = set()
    with replacing(target, versions):
        for _ in range(loads):
            with Classifier.load(target, "cpu", threads=1) as classifier:
                names = tuple(classifier.info["class_names"])
                served.add(names)
                np.testing.assert_array_equal(classifier.logits(images), expected[names])
    assert served == set(expected)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "head.npz"])
def test_what_was_read_is_what_is_used(name: str, small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    (small_bundle / name).write_bytes(b"other")
    assert bundle.contents[name] != b"other"
    with pytest.raises(ArtifactError, match=rf"{name} has 5 bytes where \d+ were recorded"):
        open_bundle(small_bundle)


def test_what_is_read_is_of_one_folder(versions: list[Path], tmp_path: Path) -> None:
    target = shutil.copytree(versions[0], tmp_path / "bundle")
    read = []

    def replaced_once(folder: OpenFolder) -> Manifest:
        if not read:
            with new_folder(target, BUNDLE, overwrite=True) as other:
                shutil.copytree(versions[1], other, dirs_exist_ok=True)
        read.append(folder.is_replaced())
        manifest, _ = Manifest.of(folder)
        folder.verify(manifest.files)
        return manifest

    assert read_folder(target, BUNDLE, replaced_once).class_names == Manifest.read(versions[1])[0].class_names
    assert read == [True, False]


def test_a_damaged_bundle_is_read_once(small_bundle: Path) -> None:
    (small_bundle / ONNX_FILE).write_bytes(b"")
    calls = []

    def read(folder: OpenFolder) -> None:
        calls.append(folder)
        folder.verify(Manifest.of(folder)[0].files)

    with pytest.raises(ArtifactError, match=r"model.onnx has 0 bytes"):
        read_folder(small_bundle, BUNDLE, read)
    assert len(calls) == 1


def test_the_bundle_before_an_interrupted_overwrite_is_never_served_in_silence(
    small_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    previous = small_bundle.parent / f".{small_bundle.name}.previous"
    small_bundle.rename(previous)
    Classifier.load(small_bundle, "cpu", threads=1).close()
    assert f"{small_bundle} is missing, as if an overwrite had been interrupted: the bundle before it" in caplog.text


def test_a_bundle_between_two_renames_is_waited_for(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = small_bundle.parent / f".{small_bundle.name}.previous"
    small_bundle.rename(previous)
    monkeypatch.setattr("tnn_runtime.bundle.reading.time.sleep", lambda seconds: previous.rename(small_bundle))
    assert read_folder(small_bundle, BUNDLE, lambda folder: folder.path) == small_bundle


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_what_is_no_file_is_refused(kind: str, small_bundle: Path) -> None:
    path = small_bundle / "head.npz"
    path.rename(small_bundle.parent / "head.npz")
    if kind == "link":
        path.symlink_to(small_bundle.parent / "head.npz")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ArtifactError, match=r"head.npz is missing or not a regular file; copy the bundle again"):
        open_bundle(small_bundle)
