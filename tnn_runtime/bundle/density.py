"""The density of the embeddings of the training images, as ``density.npz`` has it."""

from __future__ import annotations

from pathlib import Path

from tnn_runtime.answers.density import Density
from tnn_runtime.bundle.manifest import DENSITY_FILE, Manifest
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError

__all__ = ["read_density"]


def read_density(manifest: Manifest, folder: Path, content: bytes | None) -> Density | None:
    """Return the density that the reject score of a bundle needs; ``None`` if it needs none.

    Args:
        manifest: Of the bundle.
        folder: Where it lies, for messages.
        content: What is in ``density.npz``; ``None`` if the bundle does not have it.

    Raises:
        ArtifactError: If the file is damaged, or is not of such a model.
    """
    if content is None or manifest.reject is None or not manifest.reject.needs_density:
        return None
    path, size = folder / DENSITY_FILE, manifest.outputs[1].shape[1]
    try:
        arrays = read_arrays(path, *Density.names(), content=content)
        return Density.of(arrays, size or 0, len(manifest.class_names))
    except ValueError as error:
        raise ArtifactError(f"{path} does not belong to the model ({error}); export the bundle again") from error
