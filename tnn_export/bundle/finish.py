"""What every bundle goes through, whatever it is made from: the proof of its artifacts, its manifest and its card."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tnn_export.bundle.arrays import write_golden
from tnn_export.bundle.card import write_card
from tnn_export.bundle.options import ExportOptions
from tnn_export.bundle.slim import optional_files
from tnn_export.bundle.temperature import Scaling, find_temperature
from tnn_export.errors import ExportError
from tnn_export.formats import FORMATS
from tnn_export.proof.file import write_proof
from tnn_export.proof.parity import compare, proof_batch_sizes
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import ParityError, ParityReport, StageParity
from tnn_export.proof.running import fresh_process
from tnn_runtime.answers.density import Density
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import Reject, calibrate
from tnn_runtime.bundle.manifest import CARD_FILE, ONNX_FILE, Manifest, TensorSpec
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.bundle.storage import describe_files
from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import TnnError
from tnn_runtime.explain import open_explainer
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.installation import DISTRIBUTION

__all__ = ["Content", "Twin", "finish", "prove", "reject_rule", "signer_of"]

Twin = tuple[str, Mapping[str, Any]]
"""Another model to compare metrics with: its name, and its metrics."""

_logger = logging.getLogger(__name__)

_VERSIONS = (DISTRIBUTION, "torch", "torchvision", "onnx", "onnxscript")


@dataclass(frozen=True)
class Content:
    """What a bundle is about, as its manifest has it.

    Args:
        model: The configuration of the model.
        preprocessing: What happens to images.
        class_names: One for each logit.
        outputs: What artifacts return, the shape of each in their order.
        training: Where the model comes from.
        metrics: What was measured when it was trained.
    """

    model: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    outputs: Mapping[str, tuple[int | None, ...]]
    training: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The outputs, as the manifest describes them."""
        return tuple(TensorSpec(name, "float32", shape) for name, shape in self.outputs.items())

    @property
    def images(self) -> TensorSpec:
        """The input."""
        return TensorSpec("images", "uint8", (None, *self.preprocessing.shape))

    def metadata(self, options: ExportOptions) -> dict[str, str]:
        """Return what the ONNX file says about itself."""
        values = {
            "model": self.model,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "class_names": self.class_names,
            "precision": options.precision,
            "batch": dataclasses.asdict(options.batch),
            "outputs": {name: ["float32", *shape] for name, shape in self.outputs.items()},
        }
        return {f"tnn.{name}": json.dumps(value) for name, value in values.items()}


def prove(
    reference: Reference, artifacts: Mapping[str, Path], options: ExportOptions, progress: tqdm[Any]
) -> tuple[dict[str, StageParity], dict[str, str]]:
    """Compare each artifact, run in a process of its own, with what it has to reproduce.

    Returns:
        The comparison of each format, and the files that could not be run, each with the reason.
    """
    sizes = proof_batch_sizes(options.batch)
    stages, unproven = {}, {}
    for name, file in artifacts.items():
        if FORMATS[name].needs_gpu and not torch.cuda.is_available():
            unproven[file.name] = "built without a CUDA device to run it on"
        else:
            device = "cuda" if FORMATS[name].needs_gpu else "cpu"
            stages[name] = compare(
                reference, fresh_process(name, file, device, options.precision), options.precision, sizes
            )
        progress.update()
    return stages, unproven


def reject_rule(reference: Reference, score: str, coverage: float, density: Density | None = None) -> Reject | None:
    """Return which images to reject, calibrated on the real ones of a proof; ``None`` if it has none.

    Args:
        reference: What the artifacts were compared with.
        score: As for `calibrate`.
        coverage: As for `calibrate`.
        density: As for `calibrate`.
    """
    is_real = reference.samples.is_real
    if not is_real.any():
        return None
    outputs = Outputs(reference.logits[is_real], reference.embeddings[torch.from_numpy(is_real)].numpy())
    rule = calibrate(outputs, score, coverage, density)
    scores = rule.scores(outputs, density)
    lowest = int((scores == scores.min()).sum())
    if rule.threshold == scores.min() and lowest >= max(2, (1 - coverage) * len(scores)):
        _logger.warning(
            "the reject threshold %g rejects none of the held-out images: %d of %d have this score, and none a lower "
            "one; lower --coverage, or choose another --reject-score",
            rule.threshold,
            lowest,
            len(scores),
        )
    return rule


def finish(
    folder: Path,
    out: Path,
    content: Content,
    reference: Reference,
    report: ParityReport,
    options: ExportOptions,
    reject: Reject | None,
    *,
    twin: Twin | None = None,
    signer: Callable[[Path], None] | None = None,
) -> ParityReport:
    """Write into a folder with artifacts what makes it a bundle, and load it.

    Args:
        folder: Where the artifacts are.
        out: Where the bundle will be.
        content: What it is about.
        reference: What the artifacts were compared with.
        report: What came of it, without scores.
        options: How it was exported.
        reject: Which images to reject.
        twin: Another model to compare the metrics with.
        signer: Writes the signature.

    Returns:
        The report, with scores.

    Raises:
        ParityError: If an artifact is not proven.
        ExportError: If the bundle cannot be loaded.
    """
    scaling = _scaling(reference, options)
    scores = str(scaling) if reference.samples.is_real.any() else ""
    report = dataclasses.replace(report, scores=scores)
    if not report.passed:
        raise ParityError(report)
    write_proof(reference, folder)
    tolerance = write_golden(reference, report, options.precision, folder)
    files = _files(folder)
    manifest = Manifest(
        model=content.model,
        inputs=(content.images,),
        outputs=content.specs,
        preprocessing=content.preprocessing,
        class_names=content.class_names,
        precision=options.precision,
        files=files,
        parity=report.to_dict(),
        golden_tolerance=tolerance,
        versions={"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
        batch=options.batch,
        training=content.training,
        metrics={**content.metrics, **scaling.metrics},
        unproven=dict(report.unproven),
        reject=reject,
        optional=optional_files([*files, CARD_FILE]),
        notes=report.notes,
        temperature=scaling.temperature,
    )
    write_card(folder, out.absolute().name, manifest, report, twin)
    dataclasses.replace(manifest, files=_files(folder)).write(folder)
    _load(folder)
    if signer is not None:
        signer(folder)
    return report


def signer_of(key: str | Path | None) -> Callable[[Path], None] | None:
    """Return what signs a bundle with a private key, if there is one.

    Raises:
        UsageError: If the key cannot be used.
    """
    if key is None:
        return None
    from tnn_export.bundle.signing import read_private_key, write_signature

    return partial(write_signature, key=read_private_key(key))


def _scaling(reference: Reference, options: ExportOptions) -> Scaling:
    is_real = reference.samples.is_real
    return find_temperature(reference.logits[is_real], reference.samples.labels[is_real], options.temperature)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return describe_files(folder, sorted(path.name for path in folder.iterdir()))


def _load(folder: Path) -> None:
    """Load a bundle that was written, as a service would, or as far as that is possible without ONNX."""
    try:
        bundle = open_bundle(folder)
        if ONNX_FILE in bundle.manifest.files:
            Classifier.load(folder, "cpu", threads=1).close()
        else:
            open_explainer(bundle)
    except TnnError as error:
        raise ExportError(f"the bundle cannot be loaded, so nothing was written ({error})") from error
