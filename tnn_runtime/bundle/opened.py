"""A bundle that is read once: what was hashed is what is loaded, whatever becomes of its folder meanwhile."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tnn_runtime.bundle.manifest import (
    BUNDLE,
    DENSITY_FILE,
    EXEMPLARS_FILE,
    GOLDEN_FILE,
    HEAD_FILE,
    ONNX_FILE,
    Manifest,
    check_path,
)
from tnn_runtime.bundle.onnx_file import external_files
from tnn_runtime.bundle.reading import OpenFolder, read_folder
from tnn_runtime.errors import ArtifactError

__all__ = ["Bundle", "open_bundle"]

_SERVED = (ONNX_FILE, HEAD_FILE, GOLDEN_FILE, EXEMPLARS_FILE, DENSITY_FILE)


@dataclass(frozen=True)
class Bundle:
    """The manifest of a bundle, and the content of the files that serving needs.

    Args:
        folder: Where it was read, for messages.
        manifest: What it says.
        digest: SHA-256 of ``manifest.json``, which has the hash of every other file: it stands for all of the bundle.
        contents: The content of each file that serving needs, by its name.
    """

    folder: Path
    manifest: Manifest
    digest: str
    contents: Mapping[str, bytes] = field(repr=False)

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the files in which the ONNX model keeps weights, beside the one that it is."""
        return tuple(name for name in self.contents if name not in _SERVED)

    @contextmanager
    def model_on_disk(self) -> Iterator[Path]:
        """Yield the path of the ONNX model, with its weights beside it, in a folder of its own that is then removed."""
        with tempfile.TemporaryDirectory(prefix="tnn-model-") as folder:
            for name in (ONNX_FILE, *self.weights):
                Path(folder, name).write_bytes(self.contents[name])
            yield Path(folder, ONNX_FILE)


def open_bundle(bundle: str | Path, public_key: str | Path | None = None) -> Bundle:
    """Read a bundle, and check every file that its manifest lists.

    Arguments and errors are those of `Manifest.read`.
    """
    check_path(bundle)

    def read(folder: OpenFolder) -> Bundle:
        manifest, content = Manifest.of(folder, public_key)
        files = dict(manifest.files)
        contents = {name: folder.read_verified(name, files.pop(name)) for name in _SERVED if name in files}
        for name in _weights(folder, contents):
            if name not in files:
                raise ArtifactError(
                    f"{folder.path / ONNX_FILE} keeps weights in {name!r}, which the manifest does not list; export "
                    "the bundle again"
                )
            contents[name] = folder.read_verified(name, files.pop(name))
        folder.verify(files)
        return Bundle(folder.path, manifest, hashlib.sha256(content).hexdigest(), contents)

    return read_folder(Path(bundle), BUNDLE, read)


def _weights(folder: OpenFolder, contents: Mapping[str, bytes]) -> list[str]:
    """Return the names of the files in which the ONNX model keeps weights."""
    if ONNX_FILE not in contents:
        return []
    return external_files(folder.path / ONNX_FILE, contents[ONNX_FILE])
