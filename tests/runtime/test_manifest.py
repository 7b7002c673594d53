from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tnn_runtime import ArtifactError, Classifier, Manifest


def edit(bundle: Path, *keys: str, value: Any) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_what_is_written_is_read(bundle: Path, tmp_path: Path) -> None:
    manifest, folder = Manifest.read(bundle)
    assert folder == bundle
    before = (bundle / "manifest.json").read_text()
    manifest.write(bundle)
    assert (bundle / "manifest.json").read_text() == before


@pytest.mark.parametrize("name", ["model.onnx", "model.ts", "head.npz", "golden.npz"])
def test_missing_truncated_and_altered_files_are_named(bundle: Path, name: str) -> None:
    path = bundle / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=f"{name} has {len(content) // 2} bytes where {len(content)} were recorded"):
        Classifier.load(bundle)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ArtifactError, match=rf"{name} does not match its recorded SHA-256 \(altered\); copy the bundle"
    ):
        Classifier.load(bundle)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Classifier.load(bundle)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest.json; expected a bundle folder"):
        Classifier.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        Classifier.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is not a folder"):
        Classifier.load(tmp_path / "file")


def test_newer_schema(bundle: Path) -> None:
    edit(bundle, "schema_version", value=2)
    with pytest.raises(
        ArtifactError, match="schema version 2, and this installation reads up to 1; upgrade tnn-deploy"
    ):
        Classifier.load(bundle)


def test_a_name_that_leaves_the_folder(bundle: Path) -> None:
    edit(bundle, "files", "../../etc/passwd", value={"size": 1, "sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=r"'../../etc/passwd', which is not a plain name inside the folder"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("class_names",), "cat", "class_names: expected a list, got 'cat'"),
        (("class_names",), ["cat", 3], r"class_names\[1\]: expected str, got '3'"),
        (("class_names",), ["cat"], "contradicts itself"),
        (("class_names",), None, "class_names: expected a list"),
        (("preprocessing", "height"), "16", "preprocessing.height: expected int, got '16'"),
        (("preprocessing", "height"), 17, "contradicts itself"),
        (("preprocessing", "height"), True, "preprocessing.height: expected int"),
        (("preprocessing", "std"), [0, 1, 1], "expected finite numbers and a positive std"),
        (("preprocessing", "extra"), 1, "preprocessing: expected an object with height, width"),
        (("outputs",), [], "contradicts itself"),
        (("files",), {}, "lists no model file"),
        (("files", "model.onnx"), 3, "files.model.onnx: expected an object"),
        (("files", "model.onnx"), {"size": 1}, "records .* for model.onnx, expected its size and sha256"),
        (("model",), [], "model: expected an object"),
        (("model", "head"), None, "model"),
        (("golden_tolerance",), [float("nan")] * 8, "golden"),
        (("golden_tolerance",), [], "golden"),
    ],
    ids=str,
)
def test_edited_manifests_are_refused(bundle: Path, keys: tuple[str, ...], value: Any, message: str) -> None:
    edit(bundle, *keys, value=value)
    with pytest.raises(ArtifactError, match=message):
        Classifier.load(bundle)


@pytest.mark.parametrize("name", ["model", "inputs", "files", "parity", "versions", "precision", "golden_tolerance"])
def test_missing_entries_are_refused(bundle: Path, name: str) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="is not a valid manifest"):
        Classifier.load(bundle)
