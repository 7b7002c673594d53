from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import pytest

from tnn_train import TverskyConfig, load_checkpoint
from tnn_train.__main__ import main
from tnn_train.data import DATASETS
from tnn_train.data.augment import AUGMENTATIONS
from tnn_train.heads import HEADS
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS
from tnn_train.training.loop import TrainResult
from tnn_train.training.recipe import OPTIMIZERS, PRECISIONS, SCHEDULES

FAST = ["--backbone", "tiny", "--epochs", "2", "--tversky.num-features", "8"]


def test_it_trains_on_a_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["--data", str(photos), "--out", str(out), *FAST, "--tversky.model", "ratio"]) == 0
    printed = capsys.readouterr().out
    assert "26 training, 6 validation and 8 test images of 2 classes, 16x16; tiny, small stem, tversky head" in printed
    assert f"next: tnn-export {out}/best -o {out}-bundle" in printed
    loaded = load_checkpoint(out / "best")
    assert loaded.config.tversky.model == "ratio"
    assert loaded.config.tversky.num_features == 8
    assert {"report.html", "results.json"} <= {path.name for path in out.iterdir()}


def test_it_resumes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), *FAST]
    assert main(arguments) == 0
    assert main(arguments) == 1
    assert "run already exists; pass --resume (resume=True) to go on" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing from tnn-train: --out PATH --data STR; see tnn-train --help"),
        (["swep", "--data", "digits"], "unknown command 'swep'; did you mean 'sweep'?; see tnn-train --help"),
        (["--data", "digits", "--out", "run", "--workers", "100000"], "--workers is 100000 on a machine with"),
        (["--data", "digits", "--out", "run", "--threads", "100000"], "--threads is 100000 on a machine with"),
        (["--data", "nowhere", "--out", "run"], "unknown data 'nowhere': no such folder"),
        (
            ["--data", "digits", "--out", "run", "--head", "cosine"],
            "unknown head 'cosine'; choose from linear, tversky, lvq, parts, matching, logic",
        ),
        (["--data", "digits", "--out", "run", "--backbone", "vgg"], "unknown backbone 'vgg'; the nearest are vgg"),
        (
            ["--data", "digits", "--out", "run", "--tversky.difference", "x"],
            "unknown --tversky.difference 'x'; choose from ignorematch",
        ),
        (
            ["--data", "digits", "--out", "run", "--epochs", "0"],
            "--epochs is 0; expected an integer of at least 1",
        ),
        (
            ["--data", "digits", "--out", "run", "--split-seed", "5000000000"],
            "error: --split-seed is 5000000000; expected 0 to 4294967295",
        ),
        (["--data", "digits", "--out", "run", "--test-share", "0"], "--test-share is 0.0; expected a number above 0"),
        (
            ["--data", "digits", "--out", "run", "--val-share", "0.9"],
            "--test-share is 0.2 and --val-share is 0.9; expected less than 1 together",
        ),
        (
            ["--data", "digits", "--out", "run", "--groups", "groups.csv"],
            "got groups in groups.csv for images that are",
        ),
        (["--data", "", "--out", "run"], "unknown data ''"),
        (["--data", "digits", "--out", "/proc/nowhere/run"], "/proc/nowhere/run cannot be made in /proc"),
        (["--data", "digits", "--out", "run", "--epochs", "x"], "--epochs"),
        (
            ["--data", "digits", "--out", "run", "--device", "tpu"],
            "unknown device 'tpu'; choose auto, cpu, cuda or cuda:N",
        ),
        (
            ["--data", "digits", "--out", "run", "--resume"],
            "run has no last to resume from; start again, with --overwrite if the folder exists",
        ),
        (["--data", "mnist", "--data-root", "empty", "--out", "run"], "MNIST cannot be read under empty"),
        (
            ["--data", "digits", "--out", "run", "--stem", "big"],
            "unknown --stem 'big'; choose from auto, imagenet, small",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-train: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_notes_are_lines_on_standard_error(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "stray.png").touch()
    recipe = ["--freeze-backbone", "--embedding-cache", str(tmp_path / "cache"), *FAST]
    assert main(["--data", str(folder), "--out", str(tmp_path / "run"), *recipe]) == 0
    printed = capsys.readouterr()
    notes = [line for line in printed.err.splitlines() if "note:" in line]
    assert notes[0].startswith("tnn-train: note: images beside the class folders are not used: 1, the first is ")
    assert notes[1:] == ["tnn-train: note: the backbone is frozen with random weights; give it others with --weights"]
    assert "note:" not in printed.out
    assert logging.getLogger("tnn_train").handlers == []


def test_errors_name_options_as_they_are_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def error_of(*arguments: str) -> str:
        assert main(["--data", "digits", "--out", str(tmp_path / "run"), *arguments]) == 1
        return capsys.readouterr().err.removeprefix("tnn-train: error: ")

    assert error_of("--seed", "-1").startswith("--seed is -1; expected")
    assert error_of("--tversky.alpha", "-1").startswith("--tversky.alpha is -1.0; expected")
    assert error_of("--tversky.model", "ratio", "--tversky.theta", "0").startswith("--tversky.theta is 0; the ratio")
    assert error_of("--warmup-epochs", "1").startswith("--warmup-epochs is for another --schedule: one-cycle has a")
    assert error_of("--augment", "flip", "--freeze-backbone") == (
        "--augment is flip with --freeze-backbone, where each image is embedded once; leave --augment out\n"
    )


def test_a_resumed_training_with_other_options_names_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path / "run"), *FAST]
    assert main(arguments) == 0
    assert main([*arguments, "--resume", "--split-seed", "1", "--tversky.theta", "2", "--seed", "3"]) == 1
    error = capsys.readouterr().err
    for part in ("--split-seed: was 0, now 1; ", "--tversky.theta: was 1.0, now 2.0; ", "; --seed: was 0, now 3)"):
        assert part in error


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_first_help_is_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, "--data", "photos", "--patience", "3", "--help")
    assert text.count("\n") < 75
    for word in ("examples:", "what it writes:", "--data STR", "--out PATH", "--epochs INT", "tnn-train --help-all"):
        assert word in text
    assert "--patience" not in text
    assert help_of(capsys, "-h") == text
    file = tmp_path / "photos.toml"
    file.write_text('[data]\nsource = "photos"\n[train]\nepochs = 77\n')
    configured = help_of(capsys, "--config", str(file), "--help")
    assert "(default: photos)" in configured
    assert "(default: 77)" in configured
    sweep = help_of(capsys, "sweep", "--help")
    assert "--seeds INT" in sweep
    assert "tnn-train sweep --help-all" in sweep
    assert "--patience {None}|INT" in help_of(capsys, "sweep", "--help-all")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "--help-all")
    choices = (DATASETS, AUGMENTATIONS, OPTIMIZERS, SCHEDULES, PRECISIONS, HEADS)
    choices += (MODELS, INTERSECTIONS, DIFFERENCES, MEMBERSHIPS, INITS)
    for word in (*itertools.chain(*choices), "examples:", "what it writes:", "tnn-train --data photos", "--save-steps"):
        assert word in text


def test_every_option_of_the_head_reaches_the_checkpoint(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (
        "--tversky.num-features 8 --tversky.model ratio --tversky.intersection softmin "
        "--tversky.difference ignorematch --tversky.alpha 0.2 --tversky.beta 0 --tversky.theta 0.7 "
        "--tversky.logit-scale 9 --tversky.fixed beta theta "
        "--tversky.normalize --tversky.membership sigmoid --tversky.sharpness 3 --tversky.num-prototypes 6 "
        "--tversky.init orthogonal --tversky.prototype-init class-means --tversky.prototype-gain 1.5 "
        "--tversky.thresholds --tversky.opposites 2 --tversky.prototype-space feature --tversky.start class-means "
        "--tversky.unfold-at 0.5 --tversky.code classes --tversky.smooth --tversky.domain embedding "
        "--tversky.image-start noise"
    )
    command = ["--data", str(photos), "--out", str(out), "--backbone", "tiny", "--epochs", "1", *options.split()]
    assert main(command) == 0
    assert load_checkpoint(out / "best").config.tversky == TverskyConfig(
        num_features=8,
        model="ratio",
        intersection="softmin",
        difference="ignorematch",
        alpha=0.2,
        beta=0.0,
        theta=0.7,
        logit_scale=9.0,
        fixed=("beta", "theta"),
        normalize=True,
        membership="sigmoid",
        sharpness=3.0,
        num_prototypes=6,
        init="orthogonal",
        prototype_init="class-means",
        prototype_gain=1.5,
        thresholds=True,
        opposites=2.0,
        prototype_space="feature",
        start="class-means",
        unfold_at=0.5,
        code="classes",
        smooth=True,
        domain="embedding",
        image_start="noise",
    )
    named = {word.removeprefix("--tversky.").replace("-", "_") for word in options.split() if word[:2] == "--"}
    edited = {"attributes", "dropped", "names"}
    assert {field.name for field in dataclasses.fields(TverskyConfig)} == named | {"feature_bank"} | edited


def test_an_option_that_is_unknown_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "digits", "--out", "run", "--learning-rat", "1"]) == 1
    assert "--learning-rate FLOAT" in capsys.readouterr().err


def test_compare_puts_runs_side_by_side(runs: dict[str, TrainResult], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs["tversky"].folder), str(runs["linear"].folder)]) == 0
    printed = capsys.readouterr().out
    assert "head=tversky" in printed
    assert "head=linear" in printed


def test_a_file_configures_the_command(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "photos.toml"
    file.write_text(f'[data]\nsource = "{photos}"\n[model]\nbackbone = "tiny"\n[train]\nepochs = 1\nbatch_size = 8\n')
    assert main(["--config", str(file), "--out", str(tmp_path / "run"), "--batch-size", "4"]) == 0
    training = load_checkpoint(tmp_path / "run" / "last").training
    assert (training["train"]["epochs"], training["train"]["batch_size"]) == (1, 4)
