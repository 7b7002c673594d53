"""The model card of a bundle: its README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tnn_export.bundle.provenance import is_untrained
from tnn_export.ensemble.head import meanings_of
from tnn_export.ensemble.member import MEMBERS
from tnn_export.proof.report import ParityReport
from tnn_runtime.answers.reject import fewest_samples
from tnn_runtime.bundle.manifest import (
    CARD_FILE,
    EXEMPLARS_FILE,
    GOLDEN_FILE,
    HEAD_FILE,
    ONNX_FILE,
    PROOF_FILE,
    PT2_FILE,
    TORCHSCRIPT_FILE,
    BatchBounds,
    Manifest,
)
from tnn_runtime.bundle.storage import write_text
from tnn_runtime.explain.attributes import attribute_description
from tnn_runtime.text import a_head, one_line
from tnn_train.model.editing import EDITS

__all__ = ["write_card"]

_PURPOSES = {
    ONNX_FILE: "the model, for ONNX Runtime and TensorRT",
    TORCHSCRIPT_FILE: "the model, for `torch.jit.load`",
    PT2_FILE: "the model, for `torch.export.load`",
    HEAD_FILE: "the head's tensors, for explanations",
    EXEMPLARS_FILE: "small pictures of training images, which show what features and prototypes are",
    GOLDEN_FILE: "samples that are replayed when the bundle is loaded",
    PROOF_FILE: "all samples of the proof, with what eager PyTorch gave",
}
_MOST_ATTRIBUTES = 40
_METRICS = ("ensemble_", "test_", "val_", "ece", "best_epoch", "parameters", "import_", "unfolded_", "edited_")
_DATA = ("limit", "seed", "image_size", "crop_to_boxes")
_MEANINGS = {
    "logits": "one for each class",
    "embedding": "what the head sees",
    "probabilities": "softmax of the logits, without a temperature",
    "feature_maps": "where each feature lies: the mean over all places is its value",
}

_SCORES = {
    "lead": "twice its largest logit less the second",
    "probability": "the largest softmax of its logits, without a temperature",
    "logit": "its largest logit",
    "energy": "log(sum(exp(logits)))",
    "distance": "minus the distance of its embedding to the nearest prototype",
    "confidence": "how much nearer its embedding is to the nearest prototype than to that of any other class",
    "vmf": "the logarithm of the density of training images at its embedding",
}


def write_card(
    folder: Path, name: str, manifest: Manifest, report: ParityReport, twin: tuple[str, Mapping[str, Any]] | None
) -> None:
    """Write the card of a bundle.

    Args:
        folder: Where to write it.
        name: What the bundle's folder will be called.
        manifest: All about the bundle but the card.
        report: The proof.
        twin: Another model to compare the metrics with: its name, and its metrics.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (Markdown, not HTML)
        trim_blocks=False,
    )
    text = environment.get_template("card.md.jinja").render(
        title=one_line(name),
        folder=one_line(name),
        manifest=manifest,
        a_head=a_head,
        meanings={**_MEANINGS, **meanings_of(manifest.model["head"])},
        members=_members(manifest),
        purposes=_PURPOSES,
        classes=(classes := [_class_line(name) for name in manifest.class_names]),
        quotes=any(line.startswith('"') for line in classes),
        attributes=_attributes(manifest),
        num_attributes=len(_tversky(manifest).get("attributes", ())),
        is_untrained=is_untrained(manifest.training),
        data=_data(manifest.training),
        edits=_edits(manifest.training),
        batch=_batch(manifest.batch),
        metrics=_rounded(manifest.metrics),
        twin=twin[0] if twin else "",
        twin_metrics=_rounded(twin[1]) if twin else {},
        fewest=fewest_samples(manifest.reject.coverage) if manifest.reject else 0,
        scores=report.scores,
        score=_SCORES[manifest.reject.score] if manifest.reject else "",
        table=report.table(),
        stages=report.stages,
    )
    write_text(folder / CARD_FILE, text)


def _class_line(name: str) -> str:
    """Return a name on a line of its own that can be read back: as it is, or as a JSON string."""
    is_plain = name.isprintable() and name == name.strip() and name[:1] not in ("", '"', "`", "~")
    return name if is_plain else json.dumps(name)


def _members(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what the card says of each member of an ensemble; nothing of another bundle."""
    records = manifest.model.get(MEMBERS, ())
    accuracies = manifest.metrics.get("member_accuracies", [None] * len(records))
    trainings = manifest.training.get(MEMBERS, [{}] * len(records))
    return [
        {
            **record,
            "name": one_line(record["name"]),
            "accuracy": accuracy,
            "data": "untrained" if is_untrained(training) else _data(training),
        }
        for record, accuracy, training in zip(records, accuracies, trainings, strict=True)
    ]


def _tversky(manifest: Manifest) -> Mapping[str, Any]:
    """Return the form of a Tversky head; nothing of another one."""
    return manifest.model.get("tversky") or {} if manifest.model["head"] == "tversky" else {}


def _attributes(manifest: Manifest) -> list[str]:
    """Return the first attributes of the features, each with its classes where a person named it."""
    form = _tversky(manifest)
    return [
        one_line(
            attribute_description(attribute["name"], [manifest.class_names[index] for index in attribute["classes"]])
        )
        for attribute in (form.get("attributes", ())[:_MOST_ATTRIBUTES] if form.get("opposites") else ())
    ]


def _edits(training: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return for each edit the digest of what was edited, and what was done and what that did, in lines."""
    return [
        (edit["checkpoint"], [one_line(line) for line in (*edit["changes"], *edit["results"])])
        for edit in training.get(EDITS, ())
    ]


def _batch(bounds: BatchBounds) -> str:
    if bounds.largest is None:
        return f"{bounds.smallest} or more images"
    return f"{bounds.smallest} to {bounds.largest} images"


def _data(training: Mapping[str, Any]) -> str:
    data = training.get("data")
    if not isinstance(data, Mapping):
        return ""
    settings = [f"{key} {value}" for key, value in data.items() if key in _DATA and value not in (None, False)]
    source = one_line(str(data.get("source", "unknown")))
    return f"{source} ({', '.join(settings)})" if settings else source


def _rounded(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | str) and name.startswith(_METRICS)
    }
