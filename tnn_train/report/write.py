"""The report of one run: ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.hierarchy import levels_of
from tnn_runtime.bundle.storage import write_text
from tnn_train.data import ImageSet
from tnn_train.evaluation.metrics import Evaluation, best_epoch, wilson_interval
from tnn_train.heads.description import Image, Section
from tnn_train.report.faces import faces
from tnn_train.report.learned_images import learned_images_section
from tnn_train.report.page import render
from tnn_train.report.pictures import FEW_PIXELS, image_url
from tnn_train.report.plots import (
    LABELLED_CLASSES,
    plot_confusion,
    plot_coverage,
    plot_history,
    plot_reliability,
)
from tnn_train.report.summary import RunSummary
from tnn_train.training.recipe import speed_unit
from tnn_train.training.settings import flatten

__all__ = ["write_report"]

_MISTAKES = 24
_PAIRS = 15
_COVERAGES = (0.8, 0.9, 0.95, 1.0)


def write_report(path: Path, run: RunSummary) -> None:
    """Write one HTML file with everything inside: numbers, curves, confusion, calibration, mistakes, and the head.

    Args:
        path: The file, which is replaced if it exists.
        run: What to show.
    """
    best = best_epoch(run.history)
    calibration = run.test.calibration()
    coverage = run.test.coverage(run.head.reject_score)
    html = render(
        "report.html.jinja",
        run=run,
        model=run.config.get("model", {}),
        best=best,
        seconds=sum(row["seconds"] for row in run.history),
        unit=speed_unit(frozen=run.config.get("train", {}).get("freeze_backbone", False)),
        speed=float(np.median([row["images_per_second"] for row in run.history])),
        levels=_levels(run),
        calibration=calibration,
        curves={
            name: plot_history(run.history, quantity, best["epoch"])
            for quantity, name in (("loss", "loss"), ("accuracy", "accuracy"), ("learning_rate", "learning rate"))
        },
        confusion=plot_confusion(run.test.confusion, run.class_names),
        labelled=len(run.class_names) <= LABELLED_CLASSES,
        pairs=_confused_pairs(run.test),
        classes=_classes(run.test),
        rows_at_once=LABELLED_CLASSES,
        reliability=plot_reliability(calibration),
        coverage=plot_coverage(coverage),
        accuracies=[(share, coverage.at(share)) for share in _COVERAGES],
        mistakes=_mistakes(run),
        wrong=int((run.test.predictions != run.test.labels).sum()),
        described=_described(run),
        picture=partial(_sample_picture, run),
        faces=[] if run.exemplars is None else faces(run.exemplars, run.head.feature_names(run.class_names)),
        faces_in_all=0 if run.exemplars is None else len(run.exemplars.features.numbers),
        sections=_sections(run.config),
    )
    write_text(path, html)


def _levels(run: RunSummary) -> list[dict[str, Any]]:
    """Return the accuracy at each level above the classes, with what there is at it."""
    levels = levels_of(tuple(run.class_names))
    return [
        {"accuracy": accuracy, "told": f"{len(level.names)} parents, such as {level.names[0]}"}
        for level, accuracy in zip(levels, run.test.level_accuracies(run.class_names), strict=True)
    ]


def _described(run: RunSummary) -> list[Section]:
    """Return what there is to say of the head, and of the images that it was learned as."""
    sections = list(run.head.describe(run.sample))
    if run.images and run.sample is not None:
        sections.append(learned_images_section(run.images, run.sample))
    return [*sections, *run.sections]


def _confused_pairs(test: Evaluation) -> list[dict[str, Any]]:
    """Return the pairs of classes that were taken for each other most often."""
    wrong = test.confusions[test.confusions[:, 0] != test.confusions[:, 1]]
    most = wrong[np.argsort(-wrong[:, 2], kind="stable")][:_PAIRS].tolist()
    return [{"right": right, "predicted": predicted, "count": count} for right, predicted, count in most]


def _classes(test: Evaluation) -> list[dict[str, Any]]:
    """Return the scores of each class, the worst F1 first; classes without images come last."""
    scores = test.per_class
    found = np.diag(test.confusion)
    return [
        {
            "index": k,
            "support": int(scores.support[k]),
            "precision": float(scores.precision[k]),
            "recall": float(scores.recall[k]),
            "f1": float(scores.f1[k]),
            "bad": scores.support[k] and wilson_interval(int(found[k]), int(scores.support[k]))[1] < test.accuracy,
        }
        for k in np.argsort(scores.f1, kind="stable").tolist()
    ]


def _mistakes(run: RunSummary) -> list[dict[str, Any]]:
    """Return the wrong answers that the model was most sure of."""
    test = run.test
    wrong = np.flatnonzero(test.predictions != test.labels)
    surest = wrong[np.argsort(-test.confidence[wrong], kind="stable")][:_MISTAKES].tolist()
    return [
        {
            **_picture(run.test_images, index),
            "right": test.labels[index],
            "predicted": test.predictions[index],
            "confidence": float(test.confidence[index]),
        }
        for index in surest
    ]


def _sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings by the part of the configuration that they belong to."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in flatten(config).items():
        section, _, rest = name.partition(".")
        sections.setdefault(section if rest else "setting", {})[rest or section] = value
    return sections


def _sample_picture(run: RunSummary, image: Image) -> dict[str, Any]:
    if image.pixels is not None:
        return {"about": "learned image", **_shown(image.pixels)}
    assert run.sample_indices is not None
    index = int(run.sample_indices[image.place])
    return {"about": f"training image {index}", **_picture(run.train_images, index)}


def _picture(images: ImageSet, index: int) -> dict[str, Any]:
    return {"index": index, **_shown(images.decoded(index))}


def _shown(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    return {"url": image_url(pixels), "coarse": max(pixels.shape) <= FEW_PIXELS}
