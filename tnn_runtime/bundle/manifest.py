"""The manifest of a bundle: what the bundle holds, how to feed it and how it was proven."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnn_runtime.answers.reject import ALL_SCORES, Reject
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.reading import OpenFolder, read_folder, read_json
from tnn_runtime.bundle.storage import FolderKind, write_json
from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.images.preprocess import Preprocessing

__all__ = [
    "BUNDLE",
    "CARD_FILE",
    "DENSITY_FILE",
    "EXEMPLARS_FILE",
    "FEATURE_MAPS",
    "GOLDEN_FILE",
    "HEAD_FILE",
    "MANIFEST_FILE",
    "MOST_IMAGES",
    "ONNX_FILE",
    "PRECISIONS",
    "PROOF_FILE",
    "PT2_FILE",
    "SCHEMA_VERSION",
    "SIGNATURE_FILE",
    "TORCHSCRIPT_FILE",
    "BatchBounds",
    "Manifest",
    "TensorSpec",
    "check_path",
]

SCHEMA_VERSION = 5
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.ts"
PT2_FILE = "model.pt2"
HEAD_FILE = "head.npz"
GOLDEN_FILE = "golden.npz"
PROOF_FILE = "proof.npz"
CARD_FILE = "README.md"
EXEMPLARS_FILE = "exemplars.npz"
DENSITY_FILE = "density.npz"
FEATURE_MAPS = "feature_maps"

BUNDLE = FolderKind(
    "bundle",
    MANIFEST_FILE,
    (SIGNATURE_FILE, CARD_FILE, "model*", HEAD_FILE, GOLDEN_FILE, PROOF_FILE, EXEMPLARS_FILE, DENSITY_FILE),
    (
        ("config.json", "this is a checkpoint; export it first with tnn-export {} -o BUNDLE, and give BUNDLE"),
        ("best", "this is a training run; export it first with tnn-export {}/best -o BUNDLE, and give BUNDLE"),
    ),
)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MOST_IMAGES = 1 << 16
"""The largest batch that a graph may need at least."""


def check_path(bundle: str | Path) -> None:
    """Make sure that what should be a bundle is a path.

    Raises:
        UsageError: If it is not.
    """
    if not isinstance(bundle, str | Path):
        raise UsageError(f"bundle is a {type(bundle).__name__}; expected the path of a bundle folder")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; ``None`` in the shape stands for the batch size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class BatchBounds:
    """How many images one call of the graph takes.

    Args:
        smallest: At least so many.
        largest: At most so many; ``None`` where there is no limit.
    """

    smallest: int = 1
    largest: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know about a bundle.

    The JSON Schema of each version of the file is in the folder ``schemas`` beside this module. Version 2 added
    ``batch``, ``training``, ``metrics``, ``unproven``, outputs beyond the first two, and precisions other than fp32;
    version 3 added ``reject``; version 4 added ``optional`` and ``notes``, fit and background of ``preprocessing``, and
    thresholds, opposites, feature-space prototypes, the difference excess, smooth ratios and attributes to the form of
    a Tversky head; version 5 added ``temperature``.

    Args:
        model: The configuration the model was built with (``ModelConfig`` as a dictionary).
        inputs: What the graph takes: ``images``, uint8 ``[batch, height, width, channels]``.
        outputs: What it returns, in this order: ``logits``, ``embedding`` and what else was asked for.
        preprocessing: What to do with an image before it enters the graph.
        class_names: One name for each logit.
        precision: What the backbone computes in, one of `PRECISIONS`; the head computes in float32.
        files: Size and SHA-256 of each file of the bundle.
        parity: The proof of equality with eager PyTorch, one entry for each stage.
        golden_tolerance: Largest allowed absolute difference from the golden logits, one for each golden sample.
        versions: The packages that made the bundle.
        batch: The batch sizes that the graph takes.
        training: The data, the model and the recipe that the checkpoint came from, for people to read.
        metrics: What was measured in training, for people to read.
        unproven: Files of models that could not be run where the bundle was made, each with the reason.
        reject: Which images to reject; ``None`` in bundles of versions 1 and 2, and where there were no held-out ones.
        optional: Those of the files that serving can do without. They may be removed: `read` leaves the missing ones
            out of ``files``.
        notes: What who uses the bundle should know, one line each.
        temperature: What logits are divided by for scores, ``softmax(logits / temperature)``; ``None`` for nothing.
    """

    model: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    precision: str
    files: dict[str, dict[str, Any]]
    parity: dict[str, dict[str, Any]]
    golden_tolerance: tuple[float, ...]
    versions: dict[str, str]
    batch: BatchBounds = field(default_factory=BatchBounds)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    reject: Reject | None = None
    optional: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    temperature: float | None = None

    @classmethod
    def read(cls, bundle: str | Path, public_key: str | Path | None = None) -> tuple[Manifest, Path]:
        """Read and check the manifest of a bundle and every file that it lists.

        Args:
            bundle: The bundle folder.
            public_key: The PEM file of the Ed25519 key whose owner must have signed the bundle.

        Returns:
            The manifest, and the folder that it describes.

        Raises:
            SignatureError: If a key is given and the bundle is not signed with it; nothing else was read then.
            ArtifactError: If anything is missing, damaged, altered, unsafe or of a newer schema.
            UsageError: If the bundle is no path, or the key cannot be used.
        """
        check_path(bundle)

        def read(folder: OpenFolder) -> tuple[Manifest, Path]:
            manifest, _ = cls.of(folder, public_key)
            folder.verify(manifest.files)
            return manifest, folder.path

        return read_folder(Path(bundle), BUNDLE, read)

    @classmethod
    def of(cls, folder: OpenFolder, public_key: str | Path | None = None) -> tuple[Manifest, bytes]:
        """Return the manifest in an open folder without looking at the files that it lists, and its bytes.

        Raises:
            SignatureError, ArtifactError, UsageError: As `read`.
        """
        path, content = folder.path / MANIFEST_FILE, folder.read(MANIFEST_FILE)
        if public_key is not None:
            from tnn_runtime.bundle.signature import verify_signature

            verify_signature(folder, SIGNATURE_FILE, public_key, content)
        fields = read_json(path, BUNDLE.name, SCHEMA_VERSION, content)
        fields.pop("schema_version")
        try:
            manifest = decode(cls, fields, "manifest")
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a valid manifest ({error}); export the bundle again") from error
        if problem := manifest._contradiction():
            raise ArtifactError(f"{path} {problem}; export the bundle again")
        left_out = {name for name in manifest.optional if not folder.has(name)}
        files = {name: entry for name, entry in manifest.files.items() if name not in left_out}
        return dataclasses.replace(manifest, files=files), content

    @property
    def extra_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs beside logits and embedding."""
        return self.outputs[2:]

    @property
    def feature_maps(self) -> TensorSpec | None:
        """The output with feature maps, ``[batch, features, height, width]``; ``None`` if there is none."""
        return next((spec for spec in self.extra_outputs if spec.name == FEATURE_MAPS), None)

    @property
    def is_circuit(self) -> bool:
        """Whether the model is a circuit of gates on pixels, which a compiled program can run."""
        return self.is_on_pixels and self.model["head"] == "logic" and HEAD_FILE in self.files

    @property
    def is_on_pixels(self) -> bool:
        """Whether the embedding is the normalised pixels, channel by channel and row by row."""
        return bool(self.model["backbone"] == "pixels")

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        write_json(folder / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    def _contradiction(self) -> str | None:
        """Return what is wrong with entries that are valid one by one."""
        names = [self.model.get(name) for name in ("backbone", "head")]
        if not all(isinstance(name, str) and name.isprintable() for name in names):
            return "names no backbone or head of the model"
        outputs = [(spec.name, len(spec.shape)) for spec in self.outputs]
        if (
            [(spec.name, spec.shape) for spec in self.inputs] != [("images", (None, *self.preprocessing.shape))]
            or outputs[:2] not in ([("logits", 2), ("embedding", 2)], [("logits", 2), ("embedding", 4)])
            or any(len(spec.shape) < 2 or spec.shape[0] is not None or None in spec.shape[1:] for spec in self.outputs)
            or len(dict(outputs)) < len(outputs)
            or self.outputs[0].shape[1] != len(self.class_names)
            or (self.feature_maps is not None and len(self.feature_maps.shape) != 4)
        ):
            return "contradicts itself about the input shape, the outputs or the number of classes"
        if len(set(self.class_names)) < len(self.class_names):
            return "names a class twice"
        if self.precision not in PRECISIONS:
            return f"has the precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
        low, high = self.batch.smallest, self.batch.largest
        if not 1 <= low <= min(MOST_IMAGES, low if high is None else high):
            return (
                f"has batches from {low} to {high} images, expected at least 1 to {MOST_IMAGES} and no fewer at the end"
            )
        if self.reject is not None and (
            self.reject.score not in ALL_SCORES or not 0 < self.reject.coverage < 1 or self.reject.samples < 0
        ):
            return (
                f"has a reject score that is none of {', '.join(ALL_SCORES)}, or a coverage that is not between 0 and 1"
            )
        if self.temperature is not None and self.temperature <= 0:
            return f"has the temperature {self.temperature:g}, expected a number above 0"
        needed = set(self.files) - set(self.optional)
        if self.reject is not None and self.reject.needs_density and DENSITY_FILE not in needed:
            return f"rejects by {self.reject.score} and does not list {DENSITY_FILE}"
        if not {ONNX_FILE, TORCHSCRIPT_FILE, PT2_FILE} & needed:
            return "lists no model file"
        if GOLDEN_FILE not in needed:
            return f"does not list {GOLDEN_FILE}"
        if not self.parity or any(parity.get("passed") is not True for parity in self.parity.values()):
            return "has no passed proof of parity"
        return None
