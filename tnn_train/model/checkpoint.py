"""Checkpoint folders: weights and readable JSON, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from tnn_runtime.answers.density import Density
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.manifest import MANIFEST_FILE
from tnn_runtime.bundle.reading import OpenFolder, read_arrays, read_folder, read_json
from tnn_runtime.bundle.storage import FolderKind, describe_files, new_folder, write_json
from tnn_runtime.errors import ArtifactError, TnnError, UsageError
from tnn_runtime.explain.exemplars import Gallery
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel, build_model
from tnn_train.model.state_dicts import check_values
from tnn_train.run_files import BEST

__all__ = [
    "CHECKPOINT",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Checkpoint",
    "load_checkpoint",
    "load_trainer_state",
    "refuse_run",
    "save_checkpoint",
    "versions",
]

SCHEMA_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SAMPLES_FILE = "samples.npz"
EXEMPLARS_FILE = "exemplars.npz"
DENSITY_FILE = "density.npz"
STATE_FILE = "trainer_state.pt"

CHECKPOINT = FolderKind(
    "checkpoint",
    CONFIG_FILE,
    (WEIGHTS_FILE, SAMPLES_FILE, EXEMPLARS_FILE, DENSITY_FILE, STATE_FILE),
    ((MANIFEST_FILE, "this is a bundle; give the checkpoint that it was exported from"),),
)

_OPTIONAL = ("labels", "calibration")


@dataclass(frozen=True)
class _Content:
    """What ``config.json`` holds."""

    schema_version: int
    model: ModelConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with all that is needed to use it.

    Args:
        model: The model, in evaluation mode on the CPU when loaded.
        config: What it was built from.
        preprocessing: What turns an image file into a model input.
        class_names: One name for each logit.
        samples: Validation images, uint8 ``[n, H, W, C]``, on which an export proves itself.
        metrics: What was measured on the way, for people to read.
        training: The data, the model and the recipe that it comes from, as plain values, for people to read.
        labels: The classes of the samples, int64 ``[n]``; None where they are not known.
        calibration: Training images, uint8 ``[m, H, W, C]``, from which a quantisation takes its ranges; None where
            there are none.
        exemplars: Training images that show what its features and prototypes are; ``None`` where there are none.
        digest: SHA-256 of the ``config.json`` that it was read from, which has those of the other files; empty if it
            was not read.
        density: Where the embeddings of training images lie; ``None`` where that is not known.
    """

    model: ImageModel
    config: ModelConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    samples: NDArray[np.uint8]
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    calibration: NDArray[np.uint8] | None = None
    exemplars: Gallery | None = None
    digest: str = ""
    density: Density | None = None


def save_checkpoint(
    folder: str | Path, checkpoint: Checkpoint, trainer_state: dict[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Write a checkpoint folder; a kill at any moment leaves the old or the new one whole.

    Args:
        folder: Where it will stand.
        checkpoint: What to write.
        trainer_state: Optimizer, scheduler and random states, for an exact resume.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        OutputExistsError: If ``folder`` exists and ``overwrite`` is false.
    """
    with new_folder(Path(folder), CHECKPOINT, overwrite=overwrite) as path:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
        # As bytes: on a full disk both libraries, which would write themselves, raise errors that say little.
        (path / WEIGHTS_FILE).write_bytes(save(state))
        known = {name: getattr(checkpoint, name) for name in _OPTIONAL if getattr(checkpoint, name) is not None}
        np.savez(path / SAMPLES_FILE, images=checkpoint.samples, **known)
        names = [WEIGHTS_FILE, SAMPLES_FILE]
        if checkpoint.exemplars is not None:
            checkpoint.exemplars.write(path / EXEMPLARS_FILE)
            names.append(EXEMPLARS_FILE)
        if checkpoint.density is not None:
            np.savez(path / DENSITY_FILE, **dataclasses.asdict(checkpoint.density))
            names.append(DENSITY_FILE)
        if trainer_state is not None:
            buffer = io.BytesIO()
            torch.save(trainer_state, buffer)
            (path / STATE_FILE).write_bytes(buffer.getbuffer())
            names.append(STATE_FILE)
        content = _Content(
            SCHEMA_VERSION,
            checkpoint.config,
            checkpoint.preprocessing,
            checkpoint.class_names,
            checkpoint.metrics,
            versions(),
            describe_files(path, names),
            checkpoint.training,
        )
        write_json(path / CONFIG_FILE, dataclasses.asdict(content))


def refuse_run(folder: Path) -> None:
    """Make sure that a folder is not a run, out of whose checkpoints one has to be chosen.

    Raises:
        UsageError: If it is.
    """
    if (folder / BEST).is_dir():
        raise UsageError(f"{folder} is a run; give one of its checkpoints: {folder / BEST}")


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder and build its model.

    Raises:
        ArtifactError: If a file is missing, truncated, altered, or of a newer schema, or a weight is no finite number.
    """
    path, raw, digest, contents = _read(folder, SAMPLES_FILE, WEIGHTS_FILE, optional=(EXEMPLARS_FILE, DENSITY_FILE))
    samples, weights = contents[SAMPLES_FILE], contents[WEIGHTS_FILE]
    arrays = read_arrays(path / SAMPLES_FILE, "images", optional=_OPTIONAL, content=samples)
    images, labels, calibration = arrays["images"], arrays.get("labels"), arrays.get("calibration")
    try:
        content = decode(_Content, raw, "config")
        config, preprocessing = content.model, content.preprocessing
        expected = (len(content.class_names), preprocessing.channels, (len(images), *preprocessing.shape))
        if (config.num_classes, config.in_channels, images.shape) != expected or images.dtype != np.uint8:
            raise TypeError("its classes, channels and samples do not belong together")
        if labels is not None and (
            labels.dtype != np.int64
            or labels.shape != images.shape[:1]
            or not ((labels >= 0) & (labels < len(content.class_names))).all()
        ):
            raise TypeError("its samples and their labels do not belong together")
        if calibration is not None and (
            calibration.dtype != np.uint8 or calibration.shape[1:] != images.shape[1:] or len(calibration) == 0
        ):
            raise TypeError("its images for calibration are not of the model's size")
        model = build_model(config)
        model.load_state_dict(load(weights))
    except (TypeError, OSError, RuntimeError, SafetensorError, TnnError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{path} is not a checkpoint that this version can read ({reason}); train again or copy it again"
        ) from error
    check_values(model.state_dict(), str(path))
    exemplars = contents.get(EXEMPLARS_FILE)
    return Checkpoint(
        model.eval(),
        config,
        preprocessing,
        content.class_names,
        images,
        content.metrics,
        content.training,
        labels,
        calibration,
        None if exemplars is None else Gallery.read(path / EXEMPLARS_FILE, exemplars),
        digest,
        _density(path / DENSITY_FILE, contents.get(DENSITY_FILE), len(content.class_names)),
    )


def _density(path: Path, content: bytes | None, classes: int) -> Density | None:
    if content is None:
        return None
    arrays = read_arrays(path, *Density.names(), content=content)
    try:
        return Density.of(arrays, arrays["prototypes"].shape[-1], classes)
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{path} does not belong to the model ({error}); copy the checkpoint again") from error


def load_trainer_state(folder: str | Path) -> dict[str, Any]:
    """Read the state that continues a training.

    Raises:
        ArtifactError: If the checkpoint is damaged or was saved without it.
    """
    path, _, _, contents = _read(folder, STATE_FILE)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(contents[STATE_FILE]), weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path / STATE_FILE} cannot be read ({error}); this training cannot be resumed") from error
    return state


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a training gives."""
    packages = ("tnn-deploy", "torch", "torchvision", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _read(
    folder: str | Path, *names: str, optional: tuple[str, ...] = ()
) -> tuple[Path, dict[str, Any], str, dict[str, bytes]]:
    """Return where a checkpoint is, its configuration, the digest of that, and the content of some of its files.

    All files are verified first. The optional ones are read where the checkpoint has them.
    """

    def read(opened: OpenFolder) -> tuple[Path, dict[str, Any], str, dict[str, bytes]]:
        path, raw = opened.path / CONFIG_FILE, opened.read(CONFIG_FILE)
        content = read_json(path, CHECKPOINT.name, SCHEMA_VERSION, raw)
        files = content.get("files")
        if not isinstance(files, dict) or not {WEIGHTS_FILE, SAMPLES_FILE} <= set(files):
            raise ArtifactError(f"{path} does not list {WEIGHTS_FILE} and {SAMPLES_FILE}; copy the checkpoint again")
        wanted = (*names, *(name for name in optional if name in files))
        opened.verify({name: recorded for name, recorded in files.items() if name not in wanted})
        for name in names:
            if name not in files:
                raise ArtifactError(f"{opened.path} was saved without {name}; this training cannot be resumed")
        digest = hashlib.sha256(raw).hexdigest()
        return opened.path, content, digest, {name: opened.read_verified(name, files[name]) for name in wanted}

    return read_folder(Path(folder), CHECKPOINT, read)
