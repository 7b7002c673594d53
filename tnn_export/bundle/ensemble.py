"""From several bundles to one that answers with the mean of their probabilities, proven on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tnn_export.bundle.finish import Content, finish, prove, reject_rule, signer_of
from tnn_export.bundle.members import Members, read_members
from tnn_export.bundle.options import ExportOptions
from tnn_export.ensemble.graph import LOADERS, ServedEnsemble
from tnn_export.ensemble.head import EnsembleHead
from tnn_export.ensemble.member import ENSEMBLE, MEMBERS, Member
from tnn_export.ensemble.onnx import write_ensemble
from tnn_export.formats import FORMATS, ExportJob
from tnn_export.proof.file import read_proof
from tnn_export.proof.members import answers_of, compare_members, unseen
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import ParityReport
from tnn_export.proof.samples import Samples, make_samples
from tnn_runtime.answers.reject import ALL_SCORES, DENSITY_SCORES
from tnn_runtime.bundle.manifest import BUNDLE
from tnn_runtime.bundle.storage import new_folder
from tnn_runtime.errors import UsageError
from tnn_runtime.images.reading import even_sample
from tnn_runtime.text import printable
from tnn_train.fields import choose

__all__ = ["OUTPUTS", "SCORES", "export_ensemble"]

OUTPUTS = ("probabilities", "member_probabilities")
"""What an ensemble returns on request, beside logits and embedding."""

SCORES = ("lead", "probability", "logit")
"""What images may be rejected by: the energy of logarithms of probabilities is always 0."""

_USUAL = ("onnx", "torchscript")


def export_ensemble(
    members: Sequence[str | Path] | Members,
    out: str | Path,
    formats: Sequence[str] | None = None,
    *,
    outputs: Sequence[str] = (),
    reject_score: str | None = None,
    coverage: float = 0.99,
    proof_images: int | None = None,
    temperature: float | None = None,
    images: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
    sign: str | Path | None = None,
    overwrite: bool = False,
) -> ParityReport:
    """Make one bundle of several, which answers with the mean of their probabilities, and prove it.

    A member's probabilities are the softmax of its logits, divided by its temperature if it has one. The logits of the
    ensemble are the logarithms of their mean. What the ensemble answers is compared with what the members answer, each
    of them run by itself. If an artifact answers something else, nothing is written.

    Args:
        members: Two or more bundle folders, of the same classes and the same size of images; or what `read_members`
            returned.
        out: The bundle folder to make.
        formats: As in `ExportOptions`, of those that all members have; by default ONNX and TorchScript where they do.
        outputs: Which of `OUTPUTS` to return, too.
        reject_score: As in `ExportOptions`, one of `SCORES`.
        coverage: As in `ExportOptions`.
        proof_images: As in `ExportOptions`.
        temperature: As in `ExportOptions`; that of the ensemble.
        images: Distinct images for the proof, uint8 ``[N, H, W, C]``; by default those of the first member's proof.
        labels: Their classes, int64 ``[N]``, -1 where they are not known.
        sign: The PEM file of an Ed25519 private key to sign the bundle with.
        overwrite: Whether an existing bundle may be replaced.

    Returns:
        The comparison of each stage with the members.

    Raises:
        ParityError: If an artifact gives other outputs.
        ArtifactError: If a member is missing, damaged or altered, or has no record of its proof.
        ExportError: If the members do not go together, or one lacks what is asked for.
        OutputExistsError: If ``out`` exists and ``overwrite`` is false.
        UsageError: If an option is unknown, or a key cannot be used.
    """
    signer = signer_of(sign)
    for name in outputs:
        choose("output", name, OUTPUTS)
    if reject_score is not None:
        _check_score(reject_score)
    together = members if isinstance(members, Members) else read_members(members)
    _refuse_among(Path(out), together)
    options = ExportOptions(
        _formats(formats, together),
        together.precision,
        tuple(name for name in OUTPUTS if name in outputs),
        together.batch,
        reject_score=reject_score,
        coverage=coverage,
        proof_images=proof_images,
        temperature=temperature,
        exemplars=False,
    )
    proofs = [read_proof(bundle.manifest, bundle.folder) for bundle in together.bundles]
    is_given = images is not None
    if images is None:
        real = proofs[0].samples.is_real
        images, labels = proofs[0].samples.images[real], proofs[0].samples.labels[real]
    samples, notes = _samples(images, labels, together, options)
    with new_folder(Path(out), BUNDLE, overwrite=overwrite) as folder:
        steps = len(together.bundles) + 2 * len(options.formats)
        with tqdm(total=steps, desc="exporting", disable=None, delay=2, leave=False) as progress:
            kind = together.formats[0]
            answers = []
            for file, record in zip(together.files(kind), together.records, strict=True):
                answers.append(answers_of(kind, file, record.precision, samples, together.batch))
                progress.update()
            reference = Reference(
                EnsembleHead([proof.head for proof in proofs], together.records),
                samples,
                torch.from_numpy(np.concatenate([one["embedding"].reshape(len(samples), -1) for one in answers], 1)),
                parts=bool(outputs),
            )
            content = _content(together, reference, options)
            stages = {MEMBERS: compare_members(reference, answers, together.records)}
            artifacts = {}
            for name in options.formats:
                artifacts[name] = _write(name, folder, together, content, options)
                progress.update()
            proven, unproven = prove(reference, artifacts, options, progress)
        accuracies = _accuracies(answers, reference, together)
        notes += _told(accuracies, reference, () if is_given else proofs, together)
        content.metrics.update(accuracies)
        report = ParityReport({**stages, **proven}, unproven, tuple(notes))
        reject = reject_rule(reference, reject_score or reference.head.reject_score, coverage)
        return finish(folder, Path(out), content, reference, report, options, reject, signer=signer)


def _check_score(name: str) -> None:
    """Refuse what an ensemble cannot be rejected by."""
    choose("reject score", name, ALL_SCORES)
    if name not in SCORES:
        reason = (
            "the embeddings of training images, which no bundle has for all members together"
            if name in DENSITY_SCORES
            else "logits that are not the logarithms of probabilities"
        )
        raise UsageError(f"the reject score {name} needs {reason}; choose one of {', '.join(SCORES)} for an ensemble")


def _refuse_among(out: Path, members: Members) -> None:
    for bundle in members.bundles:
        if out.exists() and out.samefile(bundle.folder):
            raise UsageError(f"{out} is one of the members, which would be lost; choose another output folder")


def _formats(formats: Sequence[str] | None, members: Members) -> tuple[str, ...]:
    there = members.formats
    if formats is None:
        return tuple(kind for kind in _USUAL if kind in there) or (there[0],)
    for name in formats:
        members.files(FORMATS[choose("format", name, FORMATS)].needs or name)
    return tuple(formats)


def _samples(
    images: NDArray[np.uint8], labels: NDArray[np.int64] | None, members: Members, options: ExportOptions
) -> tuple[Samples, list[str]]:
    """Return what the proof is made on, and a note if that is not all images."""
    values = sum(int(np.prod(record.embedding)) for record in members.records)
    most = options.most_images(int(np.prod(members.preprocessing.shape)) + 4 * values)
    notes = []
    if len(images) > most:
        notes.append(
            f"the proof is made on {most:,} of {len(images):,} images, spread evenly; --proof-images N "
            "(proof_images=N) takes another number"
        )
        places = even_sample(len(images), most)
        images, labels = images[places], None if labels is None else labels[places]
    return make_samples(members.preprocessing, images, labels, needs_real=False), notes


def _content(members: Members, reference: Reference, options: ExportOptions) -> Content:
    manifests, names = members.manifests, members.class_names
    values = {"logits": reference.outputs["logits"], "embedding": reference.embeddings, **reference.outputs}
    shapes = {name: (None, *values[name].shape[1:]) for name in ("logits", "embedding", *options.outputs)}
    return Content(
        model={
            "backbone": " + ".join(dict.fromkeys(str(manifest.model["backbone"]) for manifest in manifests)),
            "head": ENSEMBLE,
            "num_classes": len(names),
            "in_channels": members.preprocessing.channels,
            MEMBERS: [_plain(record) for record in members.records],
        },
        preprocessing=members.preprocessing,
        class_names=names,
        outputs=shapes,
        training={MEMBERS: [manifest.training for manifest in manifests]},
        metrics={},
    )


def _plain(record: Member) -> dict[str, Any]:
    """Return a record as JSON has it."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(record).items()
    }


def _write(name: str, folder: Path, members: Members, content: Content, options: ExportOptions) -> Path:
    """Write the artifact of a format."""
    if name == "onnx":
        low, high = members.batch.smallest, members.batch.largest
        fixed = low if low == high else None
        specs = [dataclasses.replace(spec, shape=(fixed, *spec.shape[1:])) for spec in (content.images, *content.specs)]
        files = members.files(name)
        return write_ensemble(folder, files, members.records, specs[0], specs[1:], content.metadata(options))
    models = [LOADERS[name](file) for file in members.files(name)] if name in LOADERS else []
    model = ServedEnsemble(models, members.records[: len(models)], content.preprocessing.shape, list(content.outputs))
    return FORMATS[name].write(ExportJob(model, (members.batch.smallest, members.batch.largest)), folder)


def _accuracies(
    answers: Sequence[Mapping[str, NDArray[np.float32]]], reference: Reference, members: Members
) -> dict[str, Any]:
    """Return the accuracy of each member and of the ensemble on the images of known class, if there are any."""
    labels = reference.samples.labels
    known = labels >= 0
    if not known.any():
        return {}
    each = []
    for answer, record in zip(answers, members.records, strict=True):
        best = answer["logits"][known].argmax(1)
        order = np.arange(answer["logits"].shape[1]) if record.order is None else np.argsort(record.order)
        each.append(float((order[best] == labels[known]).mean()))
    together = float((reference.logits[known].argmax(1) == labels[known]).mean())
    return {"ensemble_images": int(known.sum()), "ensemble_accuracy": together, "member_accuracies": each}


def _told(
    accuracies: Mapping[str, Any], reference: Reference, proofs: Sequence[Reference], members: Members
) -> list[str]:
    """Return what who uses the ensemble should know of its accuracy, one line each.

    Args:
        accuracies: Of the members and of the ensemble.
        reference: Has the images of the proof.
        proofs: Those of the members, if the images are from one of them.
        members: The members.
    """
    notes = []
    if accuracies:
        pairs = zip(members.records, accuracies["member_accuracies"], strict=True)
        each = ", ".join(f"{printable(record.name)} {accuracy:.2%}" for record, accuracy in pairs)
        notes.append(
            f"accuracy on {accuracies['ensemble_images']} held-out images: {accuracies['ensemble_accuracy']:.2%} "
            f"together; {each}"
        )
    total = int(reference.samples.is_real.sum())
    for record, proof in zip(members.records, proofs, strict=False):
        if count := unseen(reference.samples, proof.samples):
            notes.append(
                f"{count} of the {total} images of the proof are not among those that {printable(record.name)} was "
                "proven on: if it was trained on them, accuracy, scores and threshold are better here than on new "
                "images; --images FOLDER takes others"
            )
    return notes
