"""What a bundle keeps of its proof, so that it can be repeated on another machine: samples, embeddings and the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tnn_export.ensemble.head import exported_head
from tnn_export.proof.reference import Reference
from tnn_export.proof.samples import Samples
from tnn_runtime.bundle.manifest import PROOF_FILE, Manifest
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError, TnnError

__all__ = ["read_proof", "write_proof"]

_HEAD, _MAPS = "head.", "maps"


def write_proof(reference: Reference, folder: Path) -> None:
    """Write the samples, the eager embeddings and the trained head into a bundle."""
    samples = reference.samples
    maps: dict[str, Any] = {} if reference.maps is None else {_MAPS: reference.maps.numpy()}
    np.savez_compressed(
        folder / PROOF_FILE,
        images=samples.images,
        kinds=np.array(samples.kinds),
        labels=samples.labels,
        embeddings=reference.embeddings.numpy(),
        **maps,
        **{f"{_HEAD}{name}": tensor.cpu().numpy() for name, tensor in reference.head.state_dict().items()},
    )


def read_proof(manifest: Manifest, folder: Path) -> Reference:
    """Return what eager PyTorch gave when a bundle was made.

    Raises:
        ArtifactError: If the bundle has no such record, as slim ones and those of version 1, or it cannot be read.
    """
    path = folder / PROOF_FILE
    if PROOF_FILE not in manifest.files:
        if PROOF_FILE in manifest.optional:
            raise ArtifactError(
                f"{folder} has no {PROOF_FILE}, which was left out; give the bundle that it was made from"
            )
        raise ArtifactError(f"{folder} has no {PROOF_FILE}, as bundles of schema 1; export it again")
    try:
        with torch.random.fork_rng(devices=[]):
            head = exported_head(manifest.model, manifest.outputs[1].shape[1] or 0)
        names = [f"{_HEAD}{name}" for name in head.state_dict()]
        maps = [_MAPS] if manifest.feature_maps else []
        wanted = ("images", "kinds", "labels", "embeddings", *maps, *names)
        arrays: dict[str, Any] = read_arrays(path, *wanted, text=["kinds"])
        head.load_state_dict({name.removeprefix(_HEAD): torch.from_numpy(arrays[name]) for name in names})
        samples = Samples(arrays["images"], tuple(map(str, arrays["kinds"])), arrays["labels"])
        parts = len(manifest.outputs) > 2
        places = torch.from_numpy(arrays[_MAPS]) if maps else None
        return Reference(head, samples, torch.from_numpy(arrays["embeddings"]), parts=parts, maps=places)
    except ArtifactError:
        raise
    except (TypeError, RuntimeError, TnnError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{path} does not fit the manifest ({reason}); export the bundle again") from error
