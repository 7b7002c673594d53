"""What an engine is built from and for, and the name it is kept under."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tnn_runtime.bundle.onnx_file import external_files
from tnn_runtime.bundle.storage import describe_files
from tnn_runtime.errors import ArtifactError, EngineError, UsageError

__all__ = ["EngineSpec", "fingerprint"]


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from and for; engines of equal specs are interchangeable.

    Args:
        model: Hexadecimal SHA-256 of the ONNX model, see `fingerprint`.
        library: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: Version of the library.
        target: The GPUs it runs on, see `tnn_runtime.engines.hardware.build_target`.
        input_name: The only input of the model.
        shape: Shape of one sample of it, without the batch.
        batch: Smallest batch size, the one to optimise for, and the largest.
        tf32: Whether float32 products may round their factors to 10 bits.
    """

    model: str
    library: str
    version: str
    target: str
    input_name: str
    shape: tuple[int, ...]
    batch: tuple[int, int, int]
    tf32: bool

    def __post_init__(self) -> None:
        if len(self.batch) != 3 or not all(_counts(self.batch)) or list(self.batch) != sorted(self.batch):
            raise UsageError(
                f"batch sizes {self.batch!r}; expected three whole numbers from 1 on, the smallest, the usual and the "
                "largest, such as (1, 8, 64)"
            )
        if not all(_counts(self.shape)):
            raise UsageError(f"shape {self.shape!r} of one input; expected whole numbers from 1 on, without the batch")

    @property
    def name(self) -> str:
        """File name of the engine, of letters, digits, ``_``, ``.`` and ``-`` alone."""
        parts = [self.model[:16], self.library, self.version, self.target, "b" + "-".join(map(str, self.batch))]
        return _plain("-".join(parts + ["tf32"] * self.tf32)) + ".engine"

    @property
    def timings_name(self) -> str:
        """File name of the kernel timings, which engines of all models on one target share."""
        return _plain("-".join(["timings", self.library, self.version, self.target])) + ".cache"


def fingerprint(model: Path) -> str:
    """Return the SHA-256 of an ONNX file, or where it keeps weights in other files, that of the hashes of all of them.

    Raises:
        EngineError: If one of the files is missing, or is not beside the model or below.
    """
    if not model.is_file():
        raise EngineError(f"{model} is not a file; expected an ONNX model")
    names = [model.name, *_external_data(model)]
    digests = [file["sha256"] for file in describe_files(model.parent, names).values()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _external_data(model: Path) -> list[str]:
    try:
        names = external_files(model)
    except ArtifactError as error:
        raise EngineError(str(error)) from error
    folder = os.path.realpath(model.parent)
    for name in names:
        path = os.path.realpath(os.path.join(folder, name))
        if not Path(path).is_relative_to(folder):
            raise EngineError(f"{model} keeps weights in {name!r}, which leaves its folder; do not use it")
        if not os.path.isfile(path):
            raise EngineError(f"{model} keeps weights in {name!r}, which is not there; copy it into {model.parent}")
    return names


def _counts(numbers: tuple[int, ...]) -> list[bool]:
    return [type(number) is int and number >= 1 for number in numbers]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
