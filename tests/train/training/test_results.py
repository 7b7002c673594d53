from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tnn_runtime import ArtifactError
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.report.compare import compare_runs
from tnn_train.training.loop import TrainResult
from tnn_train.training.results import read_run, write_results


@pytest.fixture
def folder(runs: dict[str, TrainResult], tmp_path: Path) -> Path:
    """A copy of a run."""
    return Path(shutil.copytree(runs["linear"].folder, tmp_path / "run"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("classes", "images"), [(2, 40), (50, 1000), (4000, 4000)])
def test_results_are_as_large_as_the_answers_and_not_as_all_pairs_of_classes(
    classes: int, images: int, folder: Path
) -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, classes, (2, images))
    logits = torch.nn.functional.one_hot(torch.from_numpy(predictions), classes)
    test = Evaluation.of(logits, torch.from_numpy(labels))
    results = dataclasses.replace(
        read_run(folder).results,
        class_names=tuple(f"class {number}" for number in range(classes)),
        confusion=tuple(map(tuple, test.confusions.tolist())),
    )
    write_results(folder, results)
    assert (folder / "results.json").stat().st_size < 10_000 + 60 * classes + 80 * images
    again = read_run(folder).results
    assert again == results
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    assert {(label, prediction): count for label, prediction, count in again.confusion} == {
        (int(label), int(prediction)): int(matrix[label, prediction]) for label, prediction in np.argwhere(matrix)
    }


@pytest.mark.parametrize(
    ("matrix", "triples"),
    [
        ([[3, 1], [0, 4]], ((0, 0, 3), (0, 1, 1), (1, 1, 4))),
        ([[1, 0, 0], [0, 1, 0], [0, 2, 0]], ((0, 0, 1), (1, 1, 1), (2, 1, 2))),
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9], [0, 0, 0, 0]], ((2, 3, 9),)),
    ],
)
def test_the_matrix_of_older_runs_is_read(
    matrix: list[list[int]], triples: tuple[tuple[int, int, int], ...], folder: Path
) -> None:
    edit(folder, schema_version=1, confusion=matrix)
    assert read_run(folder).results.confusion == triples
    assert "linear" in compare_runs([folder]).table()


@pytest.mark.parametrize("confusion", [None, 7, [7], [[1], 7], "x", {"a": 1}])
@pytest.mark.parametrize("version", [1, 2])
def test_another_confusion_is_refused_in_one_line(confusion: Any, version: int, folder: Path) -> None:
    edit(folder, schema_version=version, confusion=confusion)
    with pytest.raises(ArtifactError, match=r"results.json is not what tnn-train writes \("):
        read_run(folder)
