from __future__ import annotations

import json
from pathlib import Path

import pytest

from tnn_train import load_checkpoint
from tnn_train.__main__ import main
from tnn_train.training.loop import TrainResult


def options(photos: Path, runs: dict[str, TrainResult], out: Path, *more: str) -> list[str]:
    frozen = [
        "--weights",
        str(runs["linear"].best),
        "--freeze-backbone",
        "--embedding-cache",
        str(out.parent / "cache"),
    ]
    base = ["sweep", "--data", str(photos), "--backbone", "tiny", "--epochs", "5", "--out", str(out), "--seeds", "2"]
    return [*base, *frozen, *more]


def test_heads_are_trained_from_each_seed_and_compared(
    photos: Path, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main(options(photos, runs, out, "--learning-rates", "0.01", "0.1", "--seed", "3")) == 0
    printed = capsys.readouterr().out
    names = {"linear-3", "linear-4", "tversky-3", "tversky-4"}
    assert {path.name for path in out.iterdir()} == {*names, "rates", "compare.html"}
    for name in names:
        head, seed = name.split("-")
        results = json.loads((out / name / "results.json").read_text())
        assert (results["config"]["model"]["head"], results["config"]["train"]["seed"]) == (head, int(seed))
        assert results["config"]["train"]["learning_rate"] in (0.01, 0.1)
        assert load_checkpoint(out / name / "best").config.head == head
    assert "head=linear" in printed
    assert "head=tversky" in printed
    assert "linear: learning rate 0.1" in printed or "linear: learning rate 0.01" in printed


def test_it_goes_on_with_what_is_missing(
    photos: Path, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main(options(photos, runs, out)) == 0
    kept = (out / "linear-0" / "last" / "config.json").stat().st_mtime_ns
    assert main(options(photos, runs, out)) == 1
    assert "already exists; pass --resume to go on, or choose another" in capsys.readouterr().err
    (out / "tversky-1" / "results.json").unlink()
    assert main(options(photos, runs, out, "--resume")) == 0
    assert (out / "tversky-1" / "results.json").exists()
    assert (out / "linear-0" / "last" / "config.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads", "linear", "cosine"], "unknown head 'cosine'; choose from linear, tversky"),
        (["--seeds", "0"], "got 0 seeds and the heads ('linear', 'tversky'); expected at least 1 and each head once"),
        (["--heads", "linear", "linear"], "expected at least 1 and each head once"),
        (["--learning-rates", "0.1", "nan"], "--learning-rates is nan; expected a finite number of at least 0.0"),
    ],
)
def test_bad_input(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--data", "digits", "--out", str(tmp_path / "out"), *more]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
