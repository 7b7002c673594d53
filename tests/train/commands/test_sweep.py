from __future__ import annotations

import json
from pathlib import Path

import pytest

from tnn_train import load_checkpoint
from tnn_train.__main__ import main
from tnn_train.commands import sweep
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
        (
            ["--heads", "linear", "cosine"],
            "unknown head 'cosine'; choose from linear, tversky, lvq, parts, matching, logic",
        ),
        (["--seeds", "0"], "--seeds is 0; expected how many seeds to train from, at least 1"),
        (["--heads"], "--heads names no head; choose from linear, tversky, lvq, parts, matching, logic"),
        (["--heads", "linear", "linear"], "--heads has 'linear' twice; expected each head once"),
        (["--seeds", "0", "1", "2"], "'1, 2' belongs to no option; the option before it takes fewer values"),
        (["--learning-rates", "0.1", "nan"], "--learning-rates is nan; expected a finite number of at least 0.0"),
        (["--learning-rates", "0.01", "0.01"], "--learning-rates has 0.01 twice; expected each rate once"),
        (["--learning-rates", "0.01", "0.1", "1e-2"], "--learning-rates has 0.01 twice; expected each rate once"),
        (["--seed", "4294967295"], "--seed is 4294967299; expected 0 to 4294967295"),
        (
            ["--head", "linear"],
            "--head is no option of tnn-train sweep: sweep trains each of --heads; see tnn-train sweep",
        ),
        (["--head=tversky"], "--head is no option of tnn-train sweep"),
        (["--heads", "linear", "--head", "cosine"], "--head is no option of tnn-train sweep"),
    ],
)
def test_bad_input(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--data", "digits", "--out", str(tmp_path / "out"), *more]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("help_option", ["--help", "--help-all"])
def test_options_of_a_single_run_are_not_offered(help_option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", help_option])
    words = capsys.readouterr().out.split()
    assert "--heads" in words
    assert "--backbone" in words
    assert "--head" not in words


@pytest.mark.parametrize("content", ['[model]\nhead = "linear"', 'model.head = "tversky"', '[model]\nhead = "cosine"'])
def test_a_file_for_a_single_run_gets_a_note(
    content: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(sweep, "load_data", lambda config: seen.append(config) or 1 / 0)
    (tmp_path / "one.toml").write_text(f"{content}\n[data]\nsource = {str(photos)!r}\n")
    with pytest.raises(ZeroDivisionError):
        main(["sweep", "--config", str(tmp_path / "one.toml"), "--stem", "small", "--out", str(tmp_path / "out")])
    assert [config.source for config in seen] == [str(photos)]
    assert "one.toml is not used: sweep trains each of --heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rates",
    [("0.01", "0.010000001"), ("0.1", "0.10000000000000002"), ("1e-05", "0.000010000001"), ("1", "1.0000001")],
)
def test_rates_that_are_nearly_equal_have_folders_of_their_own(
    rates: tuple[str, ...], photos: Path, runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    quick = ["--heads", "linear", "--seeds", "1", "--epochs", "1", "--learning-rates", *rates]
    out = tmp_path / "sweep"
    assert main(options(photos, runs, out, *quick)) == 0
    assert len(list((out / "rates").iterdir())) == 2
    chosen = json.loads((out / "linear-0" / "results.json").read_text())["config"]["train"]["learning_rate"]
    assert chosen in [float(rate) for rate in rates]


def test_a_learning_rate_beside_others_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "load_data", lambda config: 1 / 0)
    rates = ["--learning-rate", "0.5", "--learning-rates", "0.1", "0.2"]
    with pytest.raises(ZeroDivisionError):
        main(["sweep", "--data", "digits", "--out", str(tmp_path / "out"), *rates])
    assert "--learning-rate is not used: each head gets one of --learning-rates" in capsys.readouterr().err


def test_what_one_head_cannot_have_is_refused_before_another_is_trained(
    photos: Path, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main([*options(photos, runs, out), "--keep-head"]) == 1
    error = capsys.readouterr().err
    assert "--heads is tversky, and the head of" in error
    assert "is to be kept, which is linear; choose that as --heads" in error
    assert not out.exists()
