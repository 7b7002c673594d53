"""From a checkpoint folder to a bundle folder, proven on the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_export.bundle.arrays import write_head
from tnn_export.bundle.finish import Content, Twin, finish, prove, reject_rule, signer_of
from tnn_export.bundle.options import ExportOptions
from tnn_export.bundle.provenance import is_untrained, load_with_results, without_paths
from tnn_export.errors import ExportError
from tnn_export.formats import FORMATS, ExportJob
from tnn_export.formats.precision import PRECISIONS
from tnn_export.lowering.graph import ServingModel
from tnn_export.proof.head import compare_heads
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import LOWERED, ParityReport
from tnn_export.proof.samples import Samples, make_samples
from tnn_runtime.answers.reject import DENSITY_SCORES, SCORES
from tnn_runtime.bundle.manifest import BUNDLE, DENSITY_FILE, EXEMPLARS_FILE, FEATURE_MAPS
from tnn_runtime.bundle.storage import new_folder
from tnn_runtime.images.reading import even_sample
from tnn_train.fields import repeated
from tnn_train.model.checkpoint import CONFIG_FILE, Checkpoint
from tnn_train.model.state_dicts import check_values

__all__ = ["export_bundle"]


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
    signer = signer_of(sign)
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
    job, content = _job(checkpoint, options, checkpoint.calibration if calibration is None else calibration)
    samples, notes = _samples(checkpoint, images, labels, options, content.outputs)
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
            parts = len(content.outputs) > 2
            reference = Reference.of(
                checkpoint.model, checkpoint.preprocessing, samples, parts=parts, maps=FEATURE_MAPS in content.outputs
            )
            progress.update()
            stages = {LOWERED: compare_heads(checkpoint.model.head, reference)}
            progress.update()
            proven, unproven = prove(reference, artifacts, options, progress)
        report = ParityReport({**stages, **proven}, unproven, tuple(notes))
        write_head(checkpoint.model.head, folder)
        if options.exemplars and checkpoint.exemplars is not None:
            checkpoint.exemplars.write(folder / EXEMPLARS_FILE)
        reject = reject_rule(reference, score, options.coverage, checkpoint.density)
        if reject is not None and reject.needs_density and checkpoint.density is not None:
            np.savez(folder / DENSITY_FILE, **dataclasses.asdict(checkpoint.density))
        return finish(folder, Path(out), content, reference, report, options, reject, twin=comparison, signer=signer)


def _samples(
    checkpoint: Checkpoint,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    options: ExportOptions,
    outputs: Mapping[str, tuple[int | None, ...]],
) -> tuple[Samples, list[str]]:
    """Return what the proof is made on, and a note if that is not all images."""
    shape = checkpoint.preprocessing.shape
    values = math.prod(size or 1 for size in outputs["embedding"][1:])
    if FEATURE_MAPS in outputs:
        values *= 1 + math.prod(size or 1 for size in outputs[FEATURE_MAPS][2:])
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


def _job(
    checkpoint: Checkpoint, options: ExportOptions, calibration: NDArray[np.uint8] | None
) -> tuple[ExportJob, Content]:
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
    content = Content(
        without_paths(dataclasses.asdict(checkpoint.config)),
        checkpoint.preprocessing,
        checkpoint.class_names,
        model.output_shapes(),
        without_paths(checkpoint.training),
        dict(checkpoint.metrics),
    )
    batch = (options.batch.smallest, options.batch.largest)
    return ExportJob(model, batch, options.opset, calibration, content.metadata(options)), content


def _twin(folder: Path) -> Twin:
    checkpoint = load_with_results(folder)
    return f"{checkpoint.config.head} twin", checkpoint.metrics
