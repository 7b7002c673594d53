"""Bundles without what serving can do without."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tnn_runtime.bundle.manifest import (
    BUNDLE,
    CARD_FILE,
    EXEMPLARS_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    PROOF_FILE,
    PT2_FILE,
    SIGNATURE_FILE,
    TORCHSCRIPT_FILE,
    Manifest,
)
from tnn_runtime.bundle.storage import new_folder
from tnn_train.fields import choose

__all__ = ["MODELS", "optional_files", "slim_bundle"]

MODELS = {"onnx": ONNX_FILE, "torchscript": TORCHSCRIPT_FILE, "pt2": PT2_FILE}
"""The formats that can be left out, each with its file."""

_DATA = ".data"


def optional_files(files: Iterable[str]) -> tuple[str, ...]:
    """Return which files of a bundle serving can do without, whatever serves it: proof, model card and exemplars."""
    return tuple(sorted({CARD_FILE, EXEMPLARS_FILE, PROOF_FILE} & {*files}))


def slim_bundle(
    bundle: str | Path, out: str | Path, formats: Sequence[str] | None = None, *, overwrite: bool = False
) -> tuple[str, ...]:
    """Copy a bundle without its optional files, and without models in other formats.

    The manifest, and with it a signature, is copied as it is where it allows for what is left out. Where models are, or
    an older manifest does not say what is optional, it is written anew, and a signature is left out.

    Args:
        bundle: The bundle folder.
        out: The bundle folder to make.
        formats: Which of `MODELS` to copy; all that there are if ``None``.
        overwrite: Whether an existing bundle may be replaced.

    Returns:
        The names of the files that were left out.

    Raises:
        ArtifactError: If the bundle is missing, damaged or altered.
        UsageError: If the bundle has no model in one of the formats.
        OutputExistsError: If ``out`` exists and ``overwrite`` is false.
    """
    manifest, folder = Manifest.read(bundle)
    optional = optional_files(manifest.files)
    left_out = {*optional}
    if formats is not None:
        there = [name for name, file in MODELS.items() if file in manifest.files]
        kept = {choose("format of this bundle", name, there) for name in formats}
        left_out |= {MODELS[name] for name in there if name not in kept}
        left_out |= {f"{ONNX_FILE}{_DATA}"} & manifest.files.keys() if ONNX_FILE in left_out else set()
    copied = [name for name in manifest.files if name not in left_out]
    with new_folder(Path(out), BUNDLE, overwrite=overwrite) as target:
        for name in copied:
            shutil.copyfile(folder / name, target / name)
        is_signed = (folder / SIGNATURE_FILE).exists()
        if left_out <= {*manifest.optional}:
            for name in (MANIFEST_FILE, *[SIGNATURE_FILE] * is_signed):
                shutil.copyfile(folder / name, target / name)
        else:
            files = {name: manifest.files[name] for name in (*copied, *optional)}
            dataclasses.replace(manifest, files=files, optional=optional).write(target)
            left_out |= {SIGNATURE_FILE} if is_signed else set()
        Manifest.read(target)
    return tuple(sorted(left_out))
