"""From a checkpoint folder to a bundle folder, proven on the way."""

from __future__ import annotations

import dataclasses
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from tnn_export.errors import ExportError, ParityError
from tnn_export.lowering import lower_model
from tnn_export.onnx import export_onnx
from tnn_export.parity import (
    BATCH_SIZES,
    RELATIVE_TOLERANCE,
    FormatParity,
    ParityReport,
    Reference,
    Runner,
    check_parity,
)
from tnn_export.serving import ServingModel
from tnn_export.torchscript import export_torchscript
from tnn_runtime.backends.onnxruntime import open_session
from tnn_runtime.classifier import usable_cores
from tnn_runtime.errors import UsageError
from tnn_runtime.manifest import (
    GOLDEN_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    TORCHSCRIPT_FILE,
    Manifest,
    TensorSpec,
)
from tnn_runtime.storage import describe_files, new_folder
from tnn_train.checkpoint import Checkpoint, load_checkpoint
from tnn_train.config import SCALARS, choose
from tnn_train.heads import TverskyHead

__all__ = ["FORMATS", "PRECISIONS", "export_bundle"]

_GOLDEN_SAMPLES = 8
_VERSIONS = ("tnn-deploy", "torch", "torchvision", "onnx", "onnxscript")


def _run_onnx(folder: Path) -> Runner:
    session = open_session(str(folder / ONNX_FILE), "cpu", usable_cores())

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run(["logits"], {"images": images})[0])

    return run


def _run_torchscript(folder: Path) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(str(folder / TORCHSCRIPT_FILE))  # type: ignore[no-untyped-call]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images))[0].numpy())

    return run


@dataclasses.dataclass(frozen=True)
class _Format:
    file: str
    write: Callable[[ServingModel, Path], None]
    load: Callable[[Path], Runner]


FORMATS = {
    "onnx": _Format(ONNX_FILE, export_onnx, _run_onnx),
    "torchscript": _Format(TORCHSCRIPT_FILE, export_torchscript, _run_torchscript),
}
PRECISIONS = ("fp32",)


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    out: str | Path,
    formats: Sequence[str] = ("onnx", "torchscript"),
    precision: str = "fp32",
    *,
    images: NDArray[np.uint8] | None = None,
    overwrite: bool = False,
) -> ParityReport:
    """Export a checkpoint to a bundle folder, and prove each artifact equal to eager PyTorch.

    The artifacts are compared as they were read back from disk. If one fails, nothing is written.

    Args:
        checkpoint: A checkpoint folder, or a loaded checkpoint.
        out: The bundle folder to make.
        formats: Keys of `FORMATS`.
        precision: One of `PRECISIONS`.
        images: Distinct images for the proof, uint8 ``[N, H, W, C]`` of the model's size; by default the validation
            images in the checkpoint.
        overwrite: Whether an existing bundle may be replaced.

    Returns:
        The comparison of each format with eager PyTorch.

    Raises:
        ParityError: If an artifact gives other logits.
        ExportError: If the head or the images cannot be used.
        OutputExistsError: If ``out`` exists and ``overwrite`` is false.
        UsageError: If a format or the precision is unknown.
    """
    if not formats:
        raise UsageError(f"no format was given; choose from {', '.join(FORMATS)}")
    for name in formats:
        choose("format", name, FORMATS)
    choose("precision", precision, PRECISIONS)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    images = _check_images(checkpoint, checkpoint.samples if images is None else images)
    with new_folder(Path(out), MANIFEST_FILE, overwrite=overwrite) as folder:
        names = list(dict.fromkeys(formats))
        with tqdm(total=2 + 2 * len(names), desc="exporting", disable=None, delay=2, leave=False) as progress:
            serving = ServingModel(lower_model(checkpoint.model), checkpoint.preprocessing).eval()
            progress.update()
            for name in names:
                FORMATS[name].write(serving, folder / FORMATS[name].file)
                progress.update()
            reference = Reference(checkpoint.model, checkpoint.preprocessing, images)
            progress.update()
            comparisons: dict[str, FormatParity] = {}
            for name in names:
                comparisons |= check_parity(reference, {name: FORMATS[name].load(folder)}, BATCH_SIZES).formats
                progress.update()
        report = ParityReport(comparisons)
        if not report.passed:
            raise ParityError(report)
        files = [FORMATS[name].file for name in names] + write_head(checkpoint.model.head, folder)
        golden = np.argsort(-reference.margins(), kind="stable")[:_GOLDEN_SAMPLES]
        np.savez_compressed(folder / GOLDEN_FILE, images=images[golden], logits=reference.logits[golden])
        embedding_size = serving(serving.example())[1].shape[1]
        Manifest(
            model=dataclasses.asdict(checkpoint.config),
            inputs=(TensorSpec("images", "uint8", (None, *checkpoint.preprocessing.shape)),),
            outputs=(
                TensorSpec("logits", "float32", (None, len(checkpoint.class_names))),
                TensorSpec("embedding", "float32", (None, embedding_size)),
            ),
            preprocessing=checkpoint.preprocessing,
            class_names=checkpoint.class_names,
            precision=precision,
            files=describe_files(folder, [*files, GOLDEN_FILE]),
            parity=report.to_dict(),
            golden_tolerance=tuple(float(value) for value in RELATIVE_TOLERANCE * reference.scale[golden, 0]),
            versions={"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
        ).write(folder)
    return report


def write_head(head: nn.Module, folder: Path) -> list[str]:
    """Write what explanations need to ``head.npz``, for heads that have explanations; return the files written."""
    if not isinstance(head, TverskyHead):
        return []
    with torch.no_grad():
        tensors = {
            "feature_bank": head.feature_bank,
            "feature_weight": head.feature_weight,
            "prototypes": head.prototypes,
            "prototype_features": head.project(head.prototypes),
            **{name: getattr(head, name) for name in SCALARS},
            "linear_weight": None if head.linear is None else head.linear.weight,
            "linear_bias": None if head.linear is None else head.linear.bias,
        }
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
    np.savez(folder / HEAD_FILE, **arrays)
    return [HEAD_FILE]


def _check_images(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape = checkpoint.preprocessing.shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise ExportError(
            f"got parity images of dtype {images.dtype} and shape {list(images.shape)}; expected uint8 [N, "
            f"{', '.join(map(str, shape))}] with N > 0"
        )
    _, firsts = np.unique(images, axis=0, return_index=True)
    return images[np.sort(firsts)]
