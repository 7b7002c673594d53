"""Signing of bundles, so that who has the public key can tell where they come from."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tnn_runtime.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from tnn_runtime.bundle.signature import ed25519, read_key, serialization
from tnn_runtime.bundle.storage import write_bytes

__all__ = ["read_private_key", "sign_bundle", "write_signature"]

_INSTEAD_OF_PRIVATE = {
    "PUBLIC KEY": "is a public key; expected the private one that it was made from",
    "ENCRYPTED PRIVATE KEY": "is encrypted; expected one without a passphrase: openssl pkey -in KEY.pem -out PLAIN.pem",
}


def read_private_key(path: str | Path) -> ed25519.Ed25519PrivateKey:
    """Read a private key from a PEM file.

    Raises:
        UsageError: If there is no such key in the file.
    """
    load = partial(serialization.load_pem_private_key, password=None)
    key: ed25519.Ed25519PrivateKey = read_key(path, "PRIVATE KEY", load, ed25519.Ed25519PrivateKey, _INSTEAD_OF_PRIVATE)
    return key


def write_signature(folder: Path, key: ed25519.Ed25519PrivateKey) -> None:
    """Write ``manifest.sig`` beside the manifest in ``folder``."""
    write_bytes(folder / SIGNATURE_FILE, key.sign((folder / MANIFEST_FILE).read_bytes()))


def sign_bundle(bundle: str | Path, key: str | Path) -> Path:
    """Sign a bundle that is whole; a signature that it has is replaced.

    Args:
        bundle: The bundle folder.
        key: The PEM file of an Ed25519 private key.

    Returns:
        The file with the signature.

    Raises:
        ArtifactError: If the bundle is missing, damaged or altered.
        UsageError: If the key cannot be used.
    """
    private = read_private_key(key)
    _, folder = Manifest.read(bundle)
    write_signature(folder, private)
    return folder / SIGNATURE_FILE
