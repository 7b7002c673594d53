"""Options that do nothing are told, a note each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnn_train.__main__ import main

RUN = ["--epochs", "1", "--backbone", "tiny", "--threads", "1"]
NOTE = "tnn-train: note: "


@pytest.fixture(autouse=True)
def _without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report says nothing of options, and takes most of the time."""
    monkeypatch.setattr("tnn_train.commands.train.report_on", lambda *arguments: None)


def notes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what a command notes of options that do nothing."""
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix(NOTE) for line in lines if line.startswith(NOTE) and " does nothing" in line]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--decay-epochs 3", ["--decay-epochs does nothing with --schedule one-cycle"]),
        (
            "--schedule cosine --decay-epochs 3 --decay-factor 0.5",
            [f"--decay-{name} does nothing with --schedule cosine" for name in ("epochs", "factor")],
        ),
        ("--schedule step", ["--schedule step does nothing with --epochs 1 and --decay-epochs 10"]),
        (
            "--schedule plateau --decay-epochs 2 --epochs 4",
            ["--schedule plateau does nothing with --epochs 4 and --decay-epochs 2"],
        ),
        ("--momentum 0.5", ["--momentum does nothing with --optimizer adamw"]),
        ("--optimizer adam --momentum 0.5", ["--momentum does nothing with --optimizer adam"]),
        ("--patience 5", ["--patience does nothing with --epochs 1"]),
        ("--embedding-cache cache", ["--embedding-cache does nothing without --freeze-backbone"]),
        (
            "--freeze-backbone --precision fp16",
            ["--precision does nothing with --freeze-backbone: embeddings and head are computed in float32"],
        ),
        (
            "--freeze-backbone --precision bf16 --learning-rate 0.1 --head-learning-rate 0.2",
            [
                "--precision does nothing with --freeze-backbone: embeddings and head are computed in float32",
                "--learning-rate does nothing with --freeze-backbone and --head-learning-rate",
            ],
        ),
        (
            "--head linear --tversky.alpha 0.1 --tversky.num-features 8",
            [f"--tversky.{name} does nothing with --head linear" for name in ("num-features", "alpha")],
        ),
        ("--head linear --tversky.code classes", ["--tversky.code does nothing with --head linear"]),
        (
            "--tversky.start random --tversky.code classes --tversky.unfold-at 0.5",
            [f"--tversky.{name} does nothing with --tversky.start random" for name in ("code", "unfold-at")],
        ),
        (
            "--tversky.model ratio --tversky.sharpness 3",
            ["--tversky.sharpness does nothing with --tversky.membership hard"],
        ),
        (
            "--freeze-backbone --tversky.logit-scale 3",
            ["--tversky.logit-scale does nothing with --tversky.model contrast"],
        ),
        (
            "--freeze-backbone --tversky.prototype-gain 3",
            ["--tversky.prototype-gain does nothing with --tversky.prototype-init class-means"],
        ),
        (
            "--head lvq --lvq.hidden 8 --lvq.activate-latent --lvq.rank 3",
            [
                *(f"--lvq.{name} does nothing without --lvq.latent" for name in ("hidden", "activate-latent")),
                "--lvq.rank does nothing with --lvq.relevances none",
            ],
        ),
        (
            "--head parts --parts.no-add-on --parts.depth 8",
            ["--parts.depth does nothing with --parts.no-add-on"],
        ),
        (
            "--head parts --parts.kind pipnet --parts.no-add-on --parts.epsilon 0.1",
            [f"--parts.{name} does nothing with --parts.kind pipnet" for name in ("no-add-on", "epsilon")],
        ),
        (
            "--download --data-root elsewhere",
            [f"--{name} does nothing with --data DATA" for name in ("data-root", "download")],
        ),
    ],
)
def test_each_has_a_note(
    given: str,
    expected: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = notes(["--data", str(photos), "--out", "run", *RUN, *given.split()], capsys)
    assert found == [line.replace("DATA", str(photos)) for line in expected]


@pytest.mark.parametrize(
    "given",
    [
        "--momentum 0.5 --optimizer sgd",
        "--schedule step --decay-epochs 1 --epochs 2",
        "--schedule plateau --decay-epochs 1 --epochs 4",
        "--head-learning-rate 0.1 --learning-rate 0.2",
        "--precision bf16 --patience 1 --epochs 2",
        "--freeze-backbone --head-learning-rate 0.1 --embedding-cache cache",
        "--tversky.start linear --tversky.code classes --tversky.unfold-at 0.5",
        "--tversky.membership sigmoid --tversky.sharpness 3",
        "--tversky.logit-scale 3",
        "--decay-epochs 10",
    ],
)
def test_an_option_that_does_something_has_none(
    given: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also one that has its default, and one that decides how a Tversky head starts."""
    monkeypatch.chdir(tmp_path)
    assert notes(["--data", str(photos), "--out", "run", *RUN, *given.split()], capsys) == []


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (["linear"], ["--tversky.alpha does nothing with --heads linear"]),
        (["linear", "tversky"], []),
    ],
)
def test_a_sweep_notes_once_what_no_head_uses(
    heads: list[str], expected: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "sweep"), "--heads", *heads, "--seeds", "2"]
    arguments = ["sweep", "--data", str(photos), *out, *RUN, "--tversky.alpha", "0.1", "--momentum", "0.5"]
    assert notes(arguments, capsys) == ["--momentum does nothing with --optimizer adamw", *expected]


@pytest.mark.parametrize("key", ["decay_epochs = 3", "decay_epochs = 3\nmomentum = 0.5"])
def test_an_option_of_a_file_has_a_note(
    key: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.toml").write_text(f"[train]\n{key}\n")
    out = ["--out", str(tmp_path / "run"), "--config", str(tmp_path / "options.toml")]
    assert len(notes(["--data", str(photos), *out, *RUN], capsys)) == key.count("=")
