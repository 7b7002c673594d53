"""Ed25519 signatures of bundles: 64 raw bytes over the exact bytes of the manifest, which has the hash of each file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.reading import OpenFolder
from tnn_runtime.errors import ArtifactError, SignatureError, UsageError
from tnn_runtime.installation import install_command

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519
except ImportError as error:
    raise UsageError(
        f"signatures need the package cryptography, which cannot be imported ({error}); run: {install_command('sign')}"
    ) from error

__all__ = ["ed25519", "read_key", "serialization", "verify_signature"]

_BYTES = 64
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_MAKE_KEY = "make a key with: openssl genpkey -algorithm ed25519 -out KEY.pem"
_IS_PRIVATE = "is a private key; expected a public one: openssl pkey -in KEY.pem -pubout -out PUB.pem"
_INSTEAD_OF_PUBLIC = {"PRIVATE KEY": _IS_PRIVATE, "ENCRYPTED PRIVATE KEY": _IS_PRIVATE}


def verify_signature(folder: OpenFolder, name: str, public_key: str | Path, message: bytes) -> None:
    """Make sure that a file is the signature of a message by the owner of a key.

    Args:
        folder: The bundle.
        name: The file with the signature in it.
        public_key: A PEM file.
        message: The bytes of the manifest.

    Raises:
        SignatureError: If there is no such signature.
        UsageError: If the key cannot be used.
    """
    load = serialization.load_pem_public_key
    key: ed25519.Ed25519PublicKey = read_key(
        public_key, "PUBLIC KEY", load, ed25519.Ed25519PublicKey, _INSTEAD_OF_PUBLIC
    )
    try:
        signature = folder.read(name)
    except ArtifactError as error:
        raise SignatureError(
            f"{folder.path} is not signed; expected {name} by the owner of {public_key}; get the signed bundle "
            "from its maker, or sign it with: tnn-export sign"
        ) from error
    if len(signature) != _BYTES:
        raise SignatureError(
            f"{folder.path / name} has {len(signature)} bytes; expected the {_BYTES} of an Ed25519 signature; get the "
            "bundle again"
        )
    try:
        key.verify(signature, message)
    except InvalidSignature as error:
        raise SignatureError(
            f"{folder.path} was altered after it was signed, or signed by another than the owner of {public_key}; do "
            "not use it, get the bundle again from its maker"
        ) from error


def read_key(
    path: str | Path, label: str, load: Callable[[bytes], object], kind: type[Any], instead: Mapping[str, str]
) -> Any:
    """Read an Ed25519 key from a PEM file.

    Args:
        path: The file.
        label: What its first line must call it.
        load: Reads a key of any algorithm from the content.
        kind: The class of the key.
        instead: Other labels that people have at hand, each with what is wrong about it and what to do.

    Raises:
        UsageError: If there is no such key in the file.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the key {path} cannot be read ({reason}); expected a PEM file; {_MAKE_KEY}") from error
    found = _LABEL.search(content)
    if found is None:
        raise UsageError(f"the key {path} is not PEM; expected '-----BEGIN {label}-----'; {_MAKE_KEY}")
    name = found[1].decode()
    if name in instead:
        raise UsageError(f"the key {path} {instead[name]}")
    if name != label:
        raise UsageError(f"the key {path} starts with 'BEGIN {name}'; expected 'BEGIN {label}' of Ed25519; {_MAKE_KEY}")
    try:
        key = load(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"the key {path} is damaged ({reason}); expected a {label} of Ed25519; {_MAKE_KEY}") from error
    if not isinstance(key, kind):
        raise UsageError(
            f"the key {path} is of the kind {type(key).__name__.lstrip('_')}; expected Ed25519; {_MAKE_KEY}"
        )
    return key
