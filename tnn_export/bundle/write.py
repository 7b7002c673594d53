"""From a checkpoint folder to a bundle folder, proven on the way."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_export.bundle.arrays import write_golden, write_head
from tnn_export.bundle.card import write_card
from tnn_export.bundle.options import ExportOptions
from tnn_export.bundle.provenance import is_untrained, load_with_results, without_paths
from tnn_export.bundle.slim import optional_files
from tnn_export.bundle.temperature import Scaling, find_temperature
from tnn_export.errors import ExportError
from tnn_export.formats import FORMATS, ExportJob
from tnn_export.formats.precision import PRECISIONS
from tnn_export.lowering.graph import ServingModel
from tnn_export.proof.file import write_proof
from tnn_export.proof.head import compare_heads
from tnn_export.proof.parity import compare, proof_batch_sizes
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import LOWERED, ParityError, ParityReport
from tnn_export.proof.running import fresh_process
from tnn_export.proof.samples import Samples, make_samples
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import DENSITY_SCORES, SCORES, Reject, calibrate
from tnn_runtime.bundle.manifest import (
    BUNDLE,
    CARD_FILE,
    DENSITY_FILE,
    EXEMPLARS_FILE,
    FEATURE_MAPS,
    ONNX_FILE,
    Manifest,
    TensorSpec,
)
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.bundle.storage import describe_files, new_folder
from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import TnnError
from tnn_runtime.explain import open_explainer
from tnn_runtime.images.reading import even_sample
from tnn_runtime.installation import DISTRIBUTION
from tnn_train.fields import repeated
from tnn_train.model.checkpoint import CONFIG_FILE, Checkpoint
from tnn_train.model.state_dicts import check_values

__all__ = ["export_bundle"]

_VERSIONS = (DISTRIBUTION, "torch", "torchvision", "onnx", "onnxscript")


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    out: str | Path,
    formats: Sequence[str] = ("onnx", "torchscript"),
    precision: str = "fp32",
    *,
    options: ExportOptions | None = None,
    images: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
    calibration: NDArray[np.uint8] | None = None,
    twin: str | Path | None = None,
    sign: str | Path | None = None,
    overwrite: bool = False,
) -> ParityReport:
    """Export a checkpoint to a bundle folder, and prove each artifact equal to eager PyTorch.

    The artifacts are compared as they were read back from disk, in processes of their own. If one fails, nothing is
    written.

    Args:
        checkpoint: A checkpoint folder, or a loaded checkpoint.
        out: The bundle folder to make.
        formats: As in `ExportOptions`.
        precision: As in `ExportOptions`.
        options: These and more; in place of ``formats`` and ``precision``.
        images: Distinct images for the proof, uint8 ``[N, H, W, C]`` of the model's size; by default the validation
            images in the checkpoint. If there are more than the options say, some are taken, spread evenly.
        labels: Their classes, int64 ``[N]``, if they are known.
        calibration: Images for int8, uint8 ``[M, H, W, C]``; by default the training images in the checkpoint.
        twin: The checkpoint of another head on the same data, whose metrics the model card shows, too.
        sign: The PEM file of an Ed25519 private key to sign the bundle with.
        overwrite: Whether an existing bundle may be replaced.

    Returns:
        The comparison of each stage with eager PyTorch.

    Raises:
        ParityError: If an artifact gives other outputs.
        ExportError: If the model, its class names or the images cannot be used.
        OutputExistsError: If ``out`` exists and ``overwrite`` is false.
        UsageError: If an option is unknown, or the key cannot be used.
    """
    signer = None if sign is None else _signer(sign)
    options = options or ExportOptions(tuple(formats), precision)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_with_results(Path(checkpoint))
    else:
        check_values(checkpoint.model.state_dict(), "the checkpoint")
    if images is None:
        images, labels = checkpoint.samples, checkpoint.labels
    if (name := repeated(checkpoint.class_names)) is not None:
        raise ExportError(
            f"the checkpoint has two classes called {name!r}, and a bundle tells classes by their names; give each a "
            f"name of its own: class_names in its {CONFIG_FILE}"
        )
    score = options.reject_score or checkpoint.model.head.reject_score
    if score in DENSITY_SCORES and checkpoint.density is None:
        raise ExportError(
            f"the reject score {score} needs to know where the embeddings of training images lie, and the checkpoint "
            "was made without it; give training images with --density FOLDER, or choose one "
            f"of {', '.join(SCORES)}"
        )
    job = _job(checkpoint, options, checkpoint.calibration if calibration is None else calibration)
    samples, notes = _samples(checkpoint, images, labels, options, job)
    notes += [
        f"{name}: {remark}" for name in options.formats if (remark := FORMATS[name].remarks.get(options.precision))
    ]
    comparison = None if twin is None else _twin(Path(twin))
    with new_folder(Path(out), BUNDLE, overwrite=overwrite) as folder:
        names = options.formats
        with tqdm(total=2 + 2 * len(names), desc="exporting", disable=None, delay=2, leave=False) as progress:
            artifacts = {}
            for name in names:
                artifacts[name] = FORMATS[name].write(job, folder)
                progress.update()
            parts = len(job.model.outputs) > 2
            reference = Reference.of(
                checkpoint.model, checkpoint.preprocessing, samples, parts=parts, maps=job.model.has_maps
            )
            progress.update()
            stages = {LOWERED: compare_heads(checkpoint.model.head, reference)}
            progress.update()
            sizes = proof_batch_sizes(options.batch)
            unproven = {}
            for name, file in artifacts.items():
                if FORMATS[name].needs_gpu and not torch.cuda.is_available():
                    unproven[file.name] = "built without a CUDA device to run it on"
                else:
                    device = "cuda" if FORMATS[name].needs_gpu else "cpu"
                    runner = fresh_process(name, file, device, options.precision)
                    stages[name] = compare(reference, runner, options.precision, sizes)
                progress.update()
        scaling = _scaling(reference, options)
        report = ParityReport(stages, unproven, tuple(notes), str(scaling) if reference.samples.is_real.any() else "")
        if not report.passed:
            raise ParityError(report)
        write_head(checkpoint.model.head, folder)
        write_proof(reference, folder)
        reject = _reject(reference, options, checkpoint)
        if reject is not None and reject.needs_density and checkpoint.density is not None:
            np.savez(folder / DENSITY_FILE, **dataclasses.asdict(checkpoint.density))
        if options.exemplars and checkpoint.exemplars is not None:
            checkpoint.exemplars.write(folder / EXEMPLARS_FILE)
        tolerance = write_golden(reference, report, options.precision, folder)
        files = _files(folder)
        manifest = Manifest(
            model=without_paths(dataclasses.asdict(checkpoint.config)),
            inputs=(TensorSpec("images", "uint8", (None, *checkpoint.preprocessing.shape)),),
            outputs=tuple(TensorSpec(name, "float32", shape) for name, shape in job.model.output_shapes().items()),
            preprocessing=checkpoint.preprocessing,
            class_names=checkpoint.class_names,
            precision=options.precision,
            files=files,
            parity=report.to_dict(),
            golden_tolerance=tolerance,
            versions={"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
            batch=options.batch,
            training=without_paths(checkpoint.training),
            metrics={**checkpoint.metrics, **scaling.metrics},
            unproven=unproven,
            reject=reject,
            optional=optional_files([*files, CARD_FILE]),
            notes=report.notes,
            temperature=scaling.temperature,
        )
        write_card(folder, Path(out).absolute().name, manifest, report, comparison)
        dataclasses.replace(manifest, files=_files(folder)).write(folder)
        _load(folder)
        if signer is not None:
            signer(folder)
    return report


def _samples(
    checkpoint: Checkpoint,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    options: ExportOptions,
    job: ExportJob,
) -> tuple[Samples, list[str]]:
    """Return what the proof is made on, and a note if that is not all images."""
    shape = checkpoint.preprocessing.shape
    shapes = job.model.output_shapes()
    values = math.prod(size or 1 for size in shapes["embedding"][1:])
    if job.model.has_maps:
        values *= 1 + math.prod(size or 1 for size in shapes[FEATURE_MAPS][2:])
    most = options.most_images(math.prod(shape) + 4 * values)
    notes = []
    if len(images) > most and (labels is None or len(labels) == len(images)):
        notes.append(
            f"the proof is made on {most:,} of {len(images):,} images, spread evenly; --proof-images N "
            "(proof_images=N) takes another number"
        )
        places = even_sample(len(images), most)
        images, labels = images[places], None if labels is None else labels[places]
    needs_real = not is_untrained(checkpoint.training)
    return make_samples(checkpoint.preprocessing, images, labels, needs_real=needs_real), notes


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


def _job(checkpoint: Checkpoint, options: ExportOptions, calibration: NDArray[np.uint8] | None) -> ExportJob:
    if options.precision != "int8":
        calibration = None
    elif calibration is None or len(calibration) == 0:
        raise ExportError(
            "int8 needs images for calibration, and the checkpoint has none; give training images with --calibration "
            "FOLDER (calibration=)"
        )
    elif calibration.dtype != np.uint8 or calibration.shape[1:] != checkpoint.preprocessing.shape:
        raise ExportError(
            f"got calibration images of dtype {calibration.dtype} and shape {list(calibration.shape)}; expected uint8 "
            f"[M, {', '.join(map(str, checkpoint.preprocessing.shape))}]"
        )
    model = ServingModel(
        checkpoint.model, checkpoint.preprocessing, options.outputs, PRECISIONS[options.precision].dtype
    )
    metadata = {
        "model": without_paths(dataclasses.asdict(checkpoint.config)),
        "preprocessing": dataclasses.asdict(checkpoint.preprocessing),
        "class_names": checkpoint.class_names,
        "precision": options.precision,
        "batch": dataclasses.asdict(options.batch),
        "outputs": {name: ["float32", *shape] for name, shape in model.output_shapes().items()},
    }
    described = {f"tnn.{name}": json.dumps(value) for name, value in metadata.items()}
    return ExportJob(model, (options.batch.smallest, options.batch.largest), options.opset, calibration, described)


def _reject(reference: Reference, options: ExportOptions, checkpoint: Checkpoint) -> Reject | None:
    is_real = reference.samples.is_real
    if not is_real.any():
        return None
    score = options.reject_score or reference.head.reject_score
    outputs = Outputs(reference.logits[is_real], reference.embeddings[torch.from_numpy(is_real)].numpy())
    return calibrate(outputs, score, options.coverage, checkpoint.density)


def _scaling(reference: Reference, options: ExportOptions) -> Scaling:
    is_real = reference.samples.is_real
    return find_temperature(reference.logits[is_real], reference.samples.labels[is_real], options.temperature)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return describe_files(folder, sorted(path.name for path in folder.iterdir()))


def _signer(key: str | Path) -> Callable[[Path], None]:
    from tnn_export.bundle.signing import read_private_key, write_signature

    return partial(write_signature, key=read_private_key(key))


def _twin(folder: Path) -> tuple[str, Mapping[str, Any]]:
    checkpoint = load_with_results(folder)
    return f"{checkpoint.config.head} twin", checkpoint.metrics
