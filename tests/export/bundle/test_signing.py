from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tnn_export.__main__ import main
from tnn_runtime import Classifier
from tnn_train.training.loop import TrainResult


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def test_an_export_is_signed_on_request(runs: dict[str, TrainResult], keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    out = tmp_path / "bundle"
    assert main([str(runs["tversky"].best), "-o", str(out), "--formats", "onnx", "--sign", private]) == 0
    Classifier.load(out, "cpu", public_key=public).close()


def test_a_bad_key_is_found_before_the_export(
    runs: dict[str, TrainResult], keys: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main([str(runs["tversky"].best), "-o", str(out), "--sign", keys[1]]) == 1
    assert "is a public key; expected the private one" in capsys.readouterr().err
    assert not out.exists()


def test_an_existing_bundle_is_signed_and_checked(
    small_bundle: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    check = ["check", str(small_bundle), "--public-key", public]
    assert main(check) == 1
    assert "is not signed; expected manifest.sig" in capsys.readouterr().err
    assert main(["sign", str(small_bundle), "--key", private]) == 0
    assert capsys.readouterr().out == f"wrote {small_bundle / 'manifest.sig'}\n"
    assert main(check) == 0
    assert main(["sign", str(small_bundle), "--key", private]) == 0


def test_a_damaged_bundle_is_not_signed(
    small_bundle: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (small_bundle / "head.npz").unlink()
    assert main(["sign", str(small_bundle), "--key", keys[0]]) == 1
    assert "head.npz is missing" in capsys.readouterr().err
    assert not (small_bundle / "manifest.sig").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="this machine has no openssl")
def test_help_teaches_how_to_make_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["sign", "--help"])
    for command in re.findall(r"openssl .*?(?=  )", capsys.readouterr().out):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "KEY.pem").exists()
    assert (tmp_path / "PUB.pem").exists()
