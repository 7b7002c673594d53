from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tnn_train import ImageData, load_checkpoint
from tnn_train.audit.measures import measures_of
from tnn_train.audit.section import audit_section
from tnn_train.audit.subject import Subject
from tnn_train.commands import reporting
from tnn_train.heads.description import Table, Text
from tnn_train.training.loop import TrainResult


@pytest.mark.parametrize("name", ["tversky", "ratio", "linear"])
def test_a_report_tells_what_explanations_are_worth(name: str, runs: dict[str, TrainResult], data: ImageData) -> None:
    test = data.test
    section = audit_section(Subject(load_checkpoint(runs[name].best), test.sample(len(test)), test.labels))
    about, table = section.blocks
    assert isinstance(about, Text)
    assert f"on {len(test)} test images" in about.text
    assert isinstance(table, Table)
    expected = [*measures_of("features").values(), *measures_of("explanations").values()]
    assert [(row[0], row[2]) for row in table.rows] == [(measure.title, measure.definition) for measure in expected]
    assert 0 <= float(table.rows[0][1].rstrip("%")) <= 100


def test_a_head_whose_explanations_are_too_large_is_not_audited_in_a_report(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(runs["tversky"].folder, tmp_path / "run"))
    run = dataclasses.replace(runs["tversky"], folder=folder, best=folder / "best")
    for limit, is_audited in ((reporting._EXPLAINED_BYTES, True), (1, False)):
        monkeypatch.setattr(reporting, "_EXPLAINED_BYTES", limit)
        reporting.report_on(run, data, torch.device("cpu"))
        html = (folder / "report.html").read_text()
        assert ("features that speak most for a class" in html) == is_audited
        assert ("too large to audit here; tnn-train audit does it" in html) != is_audited
