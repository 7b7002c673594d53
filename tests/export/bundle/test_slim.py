from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tnn_export import ExportError, ExportOptions, export_bundle
from tnn_export.__main__ import main
from tnn_export.bundle.slim import slim_bundle
from tnn_runtime import Classifier, Manifest, UsageError
from tnn_train import ImageData
from tnn_train.training.loop import TrainResult

OPTIONAL = ("README.md", "exemplars.npz", "proof.npz")
NEEDED = {"golden.npz", "head.npz", "manifest.json"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def logits(folder: Path, data: ImageData) -> np.ndarray:
    with Classifier.load(folder, "cpu") as classifier:
        return classifier.logits(data.test.pixels)


@pytest.mark.parametrize(
    ("formats", "kept"),
    [
        ([], {"model.onnx", "model.ts"}),
        (["--formats", "onnx", "torchscript"], {"model.onnx", "model.ts"}),
        (["--formats", "onnx"], {"model.onnx"}),
    ],
)
def test_a_slim_bundle_serves_as_the_whole_one(
    formats: list[str],
    kept: set[str],
    bundles: dict[str, Path],
    data: ImageData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "slim"
    assert main(["slim", str(bundles["tversky"]), "-o", str(out), *formats]) == 0
    printed = capsys.readouterr().out.splitlines()
    left_out = names(bundles["tversky"]) - NEEDED - kept
    assert printed[0] == f"left out: {', '.join(sorted(left_out))}"
    assert printed[1].startswith(f"wrote {out} (")
    assert names(out) == NEEDED | kept
    assert np.array_equal(logits(out, data), logits(bundles["tversky"], data))
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    for name in OPTIONAL:
        assert any(line.split() == ["file", name, "left", "out"] for line in shown.splitlines())
    assert main(["check", str(out)]) == 1
    assert "has no proof.npz, which was left out; give the bundle that it was made from" in capsys.readouterr().err


def test_libtorch_needs_no_onnx(bundles: dict[str, Path], tmp_path: Path) -> None:
    assert slim_bundle(bundles["linear"], tmp_path / "slim", ["torchscript"]) == (
        "README.md",
        "exemplars.npz",
        "model.onnx",
        "proof.npz",
    )
    assert names(tmp_path / "slim") == NEEDED | {"model.ts"}
    with pytest.raises(UsageError, match="unknown format of this bundle 'onnx'; choose from torchscript"):
        slim_bundle(tmp_path / "slim", tmp_path / "slimmer", ["onnx"])


@pytest.mark.parametrize("removed", [("proof.npz",), ("README.md",), OPTIONAL])
def test_the_manifest_says_what_may_be_removed(removed: tuple[str, ...], bundle: Path, data: ImageData) -> None:
    assert tuple(json.loads((bundle / "manifest.json").read_text())["optional"]) == OPTIONAL
    for name in removed:
        (bundle / name).unlink()
    manifest, _ = Manifest.read(bundle)
    assert not set(removed) & set(manifest.files)
    assert logits(bundle, data).shape == (8, 2)
    for name in set(OPTIONAL) - set(removed):
        (bundle / name).write_bytes(b"other")
        assert main(["inspect", str(bundle)]) == 1


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_bundles_become_slim(version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = FIXTURES / f"bundle-v{version}"
    assert main(["slim", str(bundle), "-o", str(tmp_path / "slim")]) == 0
    assert names(tmp_path / "slim") == {"golden.npz", "head.npz", "manifest.json", "model.onnx"}
    with Classifier.load(tmp_path / "slim", "cpu") as slim, Classifier.load(bundle, "cpu") as whole:
        images = np.zeros((2, 8, 8, 3), np.uint8)
        assert np.array_equal(slim.logits(images), whole.logits(images))
        assert slim.class_names == whole.class_names


@pytest.mark.parametrize("formats", [None, ["onnx"]])
def test_a_signature_stays_where_the_manifest_does(
    formats: list[str] | None, runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    export_bundle(runs["linear"].best, tmp_path / "bundle", sign=private)
    left_out = slim_bundle(tmp_path / "bundle", tmp_path / "slim", formats)
    assert ("manifest.sig" in left_out) == (formats is not None)
    if formats is None:
        Classifier.load(tmp_path / "slim", "cpu", public_key=public).close()


def test_a_bundle_may_replace_itself(bundle: Path, data: ImageData) -> None:
    before = logits(bundle, data)
    assert main(["slim", str(bundle), "-o", str(bundle)]) == 1
    assert main(["slim", str(bundle), "-o", str(bundle), "--overwrite"]) == 0
    assert slim_bundle(bundle, bundle, overwrite=True) == ()
    assert names(bundle) == NEEDED | {"model.onnx", "model.ts"}
    assert np.array_equal(logits(bundle, data), before)


def test_a_damaged_bundle_is_not_copied(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_bundle / "head.npz").unlink()
    assert main(["slim", str(small_bundle), "-o", str(tmp_path / "slim")]) == 1
    assert "head.npz is missing" in capsys.readouterr().err
    assert not (tmp_path / "slim").exists()


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_the_proof_is_made_on_so_many_images_at_most(
    most: int, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    report = export_bundle(
        runs["linear"].best,
        tmp_path / "bundle",
        options=ExportOptions(("onnx",), proof_images=most),
        images=data.test.pixels,
        labels=data.test.labels,
    )
    assert report.stages["onnx"].samples["real"] == min(most, 8)
    with np.load(tmp_path / "bundle" / "proof.npz") as proof:
        real = proof["images"][proof["kinds"] == "real"]
        places = np.unique(np.linspace(0, 7, min(most, 8)).astype(int))
        assert np.array_equal(real, data.test.pixels[places])
        assert np.array_equal(proof["labels"][: len(real)], data.test.labels[places])
    notes = [
        f"the proof is made on {most} of 8 images, spread evenly; --proof-images N (proof_images=N) takes another "
    ]
    notes = [f"{note}number" for note in notes if most < 8]
    assert list(report.notes) == list(Manifest.read(tmp_path / "bundle")[0].notes) == notes
    for note in notes:
        assert report.table().endswith(f"\nnote: {note}")
        assert note in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    ("size", "most"),
    [(28 * 28, 1024), (64 * 64 * 3, 1024), (224 * 224 * 3, 445), (224 * 224 * 3 + 4 * 2048 * 49, 121), (1 << 30, 1)],
)
def test_by_default_the_proof_takes_a_bounded_part_of_a_bundle(size: int, most: int) -> None:
    assert ExportOptions().most_images(size) == most


@pytest.mark.parametrize("most", [0, -1])
def test_a_proof_needs_an_image(most: int) -> None:
    with pytest.raises(ExportError, match=f"got {most} images for the proof; expected at least 1"):
        ExportOptions(proof_images=most)


def test_what_is_needed_cannot_be_optional(small_bundle: Path) -> None:
    content = json.loads((small_bundle / "manifest.json").read_text())
    for name, message in (("model.onnx", "lists no model file"), ("golden.npz", "does not list golden.npz")):
        copy = Path(shutil.copytree(small_bundle, small_bundle.parent / name))
        (copy / "manifest.json").write_text(json.dumps({**content, "optional": [name]}))
        assert main(["inspect", str(copy)]) == 1
        with pytest.raises(Exception, match=message):
            Manifest.read(copy)
