from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnn_runtime import ArtifactError, Classifier, Manifest
from tnn_runtime.bundle.manifest import SCHEMA_VERSION


def edit(bundle: Path, *keys: str | int, value: Any) -> None:
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
    newer = SCHEMA_VERSION + 1
    edit(bundle, "schema_version", value=newer)
    with pytest.raises(
        ArtifactError, match=f"schema version {newer}, and this installation reads up to {SCHEMA_VERSION}; upgrade tnn-"
    ):
        Classifier.load(bundle)


def test_a_name_that_leaves_the_folder(bundle: Path) -> None:
    edit(bundle, "files", "../../etc/passwd", value={"size": 1, "sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=r"'../../etc/passwd', which is not a plain name inside the folder"):
        Classifier.load(bundle)


@pytest.mark.parametrize("name", ["../../etc/passwd", "proof.npz\0", "a/b", "x" * 5000, ""])
def test_an_optional_file_that_has_no_plain_name(name: str, bundle: Path) -> None:
    edit(bundle, "optional", value=[name])
    with pytest.raises(ArtifactError, match=r"which is not a plain name inside the folder; do not use it"):
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
        (("preprocessing", "std"), [0, 1, 1], "expected finite numbers and a std of at least 1e-06"),
        (("preprocessing", "extra"), 1, "preprocessing: unknown name 'extra'; known are height, width"),
        (("outputs",), [], "contradicts itself"),
        (("files",), {}, "lists no model file"),
        (("files", "model.onnx"), 3, "files.model.onnx: expected an object"),
        (("files", "model.onnx"), {"size": 1}, "records .* for model.onnx, expected its size and sha256"),
        (("files", "model.onnx"), {"size": "a\nb", "sha256": "0" * 64}, r"bytes where 'a\\nb' were recorded"),
        (("model",), [], "model: expected an object"),
        (("model", "head"), None, "names no backbone or head"),
        (("class_names",), ["cat", "cat"], "names a class twice"),
        (("precision",), "fp8", "has the precision 'fp8', expected one of fp32, fp16, bf16, int8"),
        (("parity",), {}, "has no passed proof of parity"),
        (("parity", "onnx", "passed"), False, "has no passed proof of parity"),
        (("preprocessing", "mean"), [10**400, 0, 0], r"mean\[0\]: expected a number"),
        (("inputs", 0, "dtype"), "float32", "where the manifest has"),
        (("outputs", 1, "shape"), [None, 25], "for 2 classes and embeddings of 25 values"),
        (("model", "tversky"), None, "cannot be explained by this version"),
        (("golden_tolerance",), [float("nan")] * 8, "golden"),
        (("golden_tolerance",), [], "golden"),
        (("reject", "score"), "margin", "a reject score that is none of lead, probability, logit, energy"),
        (("reject", "threshold"), float("nan"), "reject.threshold: expected a number"),
        (("reject", "coverage"), 1.0, "a coverage that is not between 0 and 1"),
    ],
    ids=str,
)
def test_edited_manifests_are_refused(bundle: Path, keys: tuple[str | int, ...], value: Any, message: str) -> None:
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


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file and its entry in the manifest, as somebody with a purpose would."""
    (bundle / name).write_bytes(content)
    edit(bundle, "files", name, value={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["golden.npz", "head.npz", "model.onnx"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 half an archive", archive(other=np.zeros(3))], ids=["empty", "half", "other"]
)
def test_files_replaced_together_with_their_hash_are_refused(bundle: Path, name: str, content: bytes) -> None:
    rewrite(bundle, name, content)
    with pytest.raises(ArtifactError):
        Classifier.load(bundle)


def test_golden_samples_of_another_shape_are_refused(bundle: Path) -> None:
    images, logits = np.zeros((8, 16, 16, 3), np.uint8), np.zeros((8, 2), np.float32)
    for wrong in ({"logits": logits[:, :1]}, {"logits": logits[:3]}, {"images": images[:0]}, {"images": images[:, :8]}):
        rewrite(bundle, "golden.npz", archive(**{"images": images, "logits": logits, **wrong}))
        with pytest.raises(ArtifactError, match="golden.npz has images"):
            Classifier.load(bundle)


@pytest.mark.parametrize("name", ["golden.npz", "head.npz"])
def test_a_file_that_is_used_must_be_listed(bundle: Path, name: str) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    del content["files"][name]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"does not list {name}"):
        Classifier.load(bundle)


def test_nesting_without_end_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        Classifier.load(bundle)
