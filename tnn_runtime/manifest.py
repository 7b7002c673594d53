"""The manifest of a bundle: what the bundle holds, how to feed it and how it was proven."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnn_runtime.errors import ArtifactError
from tnn_runtime.preprocess import Preprocessing
from tnn_runtime.storage import existing_folder, read_json, verify_files, write_json

__all__ = [
    "GOLDEN_FILE",
    "HEAD_FILE",
    "MANIFEST_FILE",
    "ONNX_FILE",
    "SCHEMA_VERSION",
    "TORCHSCRIPT_FILE",
    "Manifest",
    "TensorSpec",
]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.ts"
HEAD_FILE = "head.npz"
GOLDEN_FILE = "golden.npz"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; ``None`` in the shape stands for the batch size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know about a bundle.

    Args:
        model: The configuration the model was built with (``ModelConfig`` as a dictionary).
        inputs: What the graph takes: ``images``, uint8 ``[batch, height, width, channels]``.
        outputs: What it returns, in this order: ``logits`` and ``embedding``.
        preprocessing: What to do with an image before it enters the graph.
        class_names: One name for each logit.
        precision: The arithmetic of the graph, ``"fp32"``.
        files: Size and SHA-256 of each file of the bundle.
        parity: The proof of equality with eager PyTorch, one entry for each format.
        golden_tolerance: Largest allowed absolute difference from the golden logits, one for each golden sample.
        versions: The packages that made the bundle.
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

    @classmethod
    def read(cls, bundle: str | Path) -> tuple[Manifest, Path]:
        """Read and check the manifest of a bundle and every file that it lists.

        Returns:
            The manifest, and the folder that it describes.

        Raises:
            ArtifactError: If anything is missing, damaged, altered, unsafe or of a newer schema.
        """
        folder = existing_folder(Path(bundle), "bundle", MANIFEST_FILE)
        content = read_json(folder / MANIFEST_FILE, "bundle", SCHEMA_VERSION)
        del content["schema_version"]
        try:
            manifest = _decode(cls, content)
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} is not a valid manifest ({error}); export the bundle again"
            ) from error
        classes, shape = len(manifest.class_names), (None, *manifest.preprocessing.shape)
        outputs = [(spec.name, len(spec.shape)) for spec in manifest.outputs]
        if (
            [spec.shape for spec in manifest.inputs] != [shape]
            or outputs != [("logits", 2), ("embedding", 2)]
            or manifest.outputs[0].shape != (None, classes)
        ):
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} contradicts itself about the input shape or the number of classes; "
                "export the bundle again"
            )
        if not all(isinstance(manifest.model.get(name), str) for name in ("backbone", "head")):
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} names no backbone or head of the model; export the bundle again"
            )
        if ONNX_FILE not in manifest.files and TORCHSCRIPT_FILE not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST_FILE} lists no model file; export the bundle again")
        verify_files(folder, manifest.files, "bundle")
        return typing.cast(Manifest, manifest), folder

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``."""
        write_json(folder / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})


def _decode(kind: Any, value: Any, where: str = "manifest") -> Any:
    """Turn plain JSON into the annotated type ``kind``, refusing whatever does not fit."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        _expect(
            isinstance(value, Mapping) and set(value) == set(hints), where, f"an object with {', '.join(hints)}", value
        )
        return typing.cast(Any, kind)(
            **{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()}
        )
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, Mapping), where, "an object", value)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    allowed = arguments or ((int, float) if kind is float else (kind,))
    _expect(type(value) in allowed, where, " or ".join(item.__name__ for item in allowed), value)
    return value


def _expect(condition: bool, where: str, expected: str, value: Any) -> None:
    if not condition:
        raise TypeError(f"{where}: expected {expected}, got {str(value)[:60]!r}")
