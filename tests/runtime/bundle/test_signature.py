from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from PIL import Image

from tnn_export.bundle.signing import read_private_key, sign_bundle
from tnn_runtime import ArtifactError, Classifier, Manifest, SignatureError, UsageError
from tnn_runtime.__main__ import main
from tnn_runtime.bundle.manifest import BUNDLE
from tnn_runtime.bundle.reading import OpenFolder
from tnn_runtime.bundle.signature import verify_signature

PEM, PKCS8, OPEN = pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()
SPKI = pem.PublicFormat.SubjectPublicKeyInfo


class Keys(NamedTuple):
    private: Path
    public: Path
    stranger: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    keys = Keys(folder / "key.pem", folder / "pub.pem", folder / "stranger.pem")
    key, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    keys.private.write_bytes(key.private_bytes(PEM, PKCS8, OPEN))
    keys.public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    keys.stranger.write_bytes(other.public_key().public_bytes(PEM, SPKI))
    elliptic = ec.generate_private_key(ec.SECP256R1())
    (folder / "elliptic.pem").write_bytes(elliptic.private_bytes(PEM, PKCS8, OPEN))
    (folder / "elliptic-pub.pem").write_bytes(elliptic.public_key().public_bytes(PEM, SPKI))
    (folder / "old.pem").write_bytes(elliptic.private_bytes(PEM, pem.PrivateFormat.TraditionalOpenSSL, OPEN))
    (folder / "locked.pem").write_bytes(key.private_bytes(PEM, PKCS8, pem.BestAvailableEncryption(b"secret")))
    (folder / "torn.pem").write_text("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n")
    (folder / "torn-private.pem").write_text("-----BEGIN PRIVATE KEY-----\nMCow\n-----END PRIVATE KEY-----\n")
    (folder / "note.txt").write_text("no key")
    return keys


@pytest.fixture
def signed(small_bundle: Path, keys: Keys) -> Path:
    sign_bundle(small_bundle, keys.private)
    return small_bundle


def test_a_bundle_is_loaded_with_the_key_that_it_was_signed_with(signed: Path, keys: Keys) -> None:
    with Classifier.load(signed, "cpu", public_key=keys.public) as classifier:
        assert classifier.info["class_names"] == ["cat", "dog"]
    assert Manifest.read(signed, keys.public) == Manifest.read(signed)
    assert (signed / "manifest.sig").stat().st_size == 64


def test_nothing_of_an_unsigned_bundle_is_looked_into(small_bundle: Path, keys: Keys) -> None:
    (small_bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(SignatureError, match=r"is not signed; expected manifest.sig by the owner of .*pub.pem"):
        Manifest.read(small_bundle, keys.public)


def test_an_altered_manifest_is_refused(signed: Path, keys: Keys) -> None:
    path = signed / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=2))
    Manifest.read(signed)
    with pytest.raises(SignatureError, match="was altered after it was signed, or signed by another"):
        Manifest.read(signed, keys.public)


def test_a_signature_of_somebody_else_is_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(SignatureError, match=r"signed by another than the owner of .*stranger.pem; do not use it"):
        Classifier.load(signed, "cpu", public_key=keys.stranger)


@pytest.mark.parametrize("change", ["flip", "cut", "append", "folder", "link"])
def test_a_damaged_signature_is_refused(signed: Path, keys: Keys, change: str) -> None:
    path = signed / "manifest.sig"
    content = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change == "link":
        (signed / "elsewhere").write_bytes(content)
        path.symlink_to(signed / "elsewhere")
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes({"flip": flipped, "cut": content[:-1], "append": content + b"\n"}[change])
    Manifest.read(signed)
    with pytest.raises(SignatureError):
        Manifest.read(signed, keys.public)


def test_altered_files_of_a_signed_bundle_are_refused(signed: Path, keys: Keys) -> None:
    with (signed / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match=r"model.onnx has \d+ bytes where \d+ were recorded"):
        Manifest.read(signed, keys.public)


def test_a_model_that_was_slipped_in_is_not_loaded(small_bundle: Path, keys: Keys) -> None:
    path = small_bundle / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["model.pt2"] = content["files"].pop("model.onnx")
    (small_bundle / "model.onnx").rename(small_bundle / "model.pt2")
    path.write_text(json.dumps(content))
    sign_bundle(small_bundle, keys.private)
    shutil.copy(small_bundle / "model.pt2", small_bundle / "model.onnx")
    with pytest.raises(ArtifactError, match=r"lists no model.onnx"):
        Classifier.load(small_bundle, "cpu", public_key=keys.public)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pem", r"cannot be read \(No such file or directory\); expected a PEM file; make a key with: openssl"),
        (".", r"cannot be read \(Is a directory\)"),
        ("note.txt", "is not PEM; expected '-----BEGIN PUBLIC KEY-----'"),
        ("key.pem", "is a private key; expected a public one: openssl pkey -in KEY.pem -pubout -out PUB.pem"),
        ("locked.pem", "is a private key; expected a public one"),
        ("old.pem", "starts with 'BEGIN EC PRIVATE KEY'; expected 'BEGIN PUBLIC KEY' of Ed25519"),
        ("elliptic-pub.pem", "is of the kind (EC|EllipticCurve)PublicKey; expected Ed25519"),
        ("torn.pem", r"is damaged \(.*\); expected a PUBLIC KEY of Ed25519"),
    ],
)
def test_public_keys_that_cannot_be_used(signed: Path, keys: Keys, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Manifest.read(signed, keys.public.parent / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pem", "cannot be read"),
        ("note.txt", "is not PEM; expected '-----BEGIN PRIVATE KEY-----'"),
        ("pub.pem", "is a public key; expected the private one that it was made from"),
        ("locked.pem", "is encrypted; expected one without a passphrase: openssl pkey -in KEY.pem -out PLAIN.pem"),
        ("elliptic.pem", "is of the kind (EC|EllipticCurve)PrivateKey; expected Ed25519"),
        ("torn-private.pem", "is damaged"),
    ],
)
def test_private_keys_that_cannot_be_used(keys: Keys, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read_private_key(keys.private.parent / name)
    assert "\n" not in str(error.value)


def test_the_commands_take_the_key(
    signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(image)
    commands = (
        ["predict", str(signed), str(image)],
        ["bench", str(signed), str(signed), "--batch", "1", "--blocks", "1"],
    )
    for command in commands:
        assert main([*command, "--public-key", str(keys.public)]) == 0
        capsys.readouterr()
        assert main([*command, "--public-key", str(keys.stranger)]) == 1
        error = capsys.readouterr().err
        assert "signed by another than the owner of" in error
        assert error.count("\n") == 1


def test_without_cryptography_a_key_is_an_error_that_names_the_extra(signed: Path, keys: Keys) -> None:
    program = f"""
import sys
sys.modules["cryptography"] = None
from tnn_runtime import Manifest, UsageError
Manifest.read({str(signed)!r})
try:
    Manifest.read({str(signed)!r}, {str(keys.public)!r})
except UsageError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "run: pip install 'cryptography<51,>=42'" in result.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="this machine has no openssl")
def test_the_documented_openssl_commands(small_bundle: Path, tmp_path: Path) -> None:
    def openssl(command: str) -> str:
        return subprocess.run(
            ["openssl", *command.split()], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    openssl("genpkey -algorithm ed25519 -out KEY.pem")
    openssl("pkey -in KEY.pem -pubout -out PUB.pem")
    signature = sign_bundle(small_bundle, tmp_path / "KEY.pem")
    verify_signature(
        OpenFolder(small_bundle, BUNDLE),
        signature.name,
        tmp_path / "PUB.pem",
        (small_bundle / "manifest.json").read_bytes(),
    )
    openssl("pkey -in KEY.pem -aes256 -passout pass:secret -out LOCKED.pem")
    with pytest.raises(UsageError, match="is encrypted"):
        read_private_key(tmp_path / "LOCKED.pem")
    raw = "-rawin -in small/manifest.json -sigfile small/manifest.sig"
    assert "Verified Successfully" in openssl(f"pkeyutl -verify -pubin -inkey PUB.pem {raw}")
