from __future__ import annotations

import re
from pathlib import Path

import pytest

from tnn_export.__main__ import main
from tnn_export.commands.arguments import add_export_options, export_options
from tnn_runtime import Classifier
from tnn_runtime.console import Parser
from tnn_train.training.loop import TrainResult


def test_it_exports_and_prints_the_proof(
    runs: dict[str, TrainResult], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main([str(runs["tversky"].best), "-o", str(out), "--images", str(photos)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:4] == ["lowered", "head", "fp32", "passed"]
    assert printed[2].split()[:3] == ["onnx", "fp32", "passed"]
    assert printed[3].split()[:3] == ["torchscript", "fp32", "passed"]
    assert printed[2].split()[-3:] == ["100.00%", "of", "100.00%"]
    assert printed[-1] == f"next: tnn-runtime predict {out} IMAGE..."
    Classifier.load(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: checkpoint, -o/--out"),
        (["nowhere", "-o", "out"], "nowhere does not exist; expected a checkpoint folder with config.json in it"),
        (
            ["BEST", "-o", "out", "--formats", "onnx", "coreml"],
            "unknown format 'coreml'; choose from onnx, torchscript",
        ),
        (["BEST", "-o", "out", "--precision", "fp8"], "unknown precision 'fp8'; choose from fp32"),
        (["BEST", "-o", "out", "--images", "nowhere"], "nowhere does not exist; expected a folder of images"),
        (["BEST", "-o", "out", "--images", "BEST/config.json"], "config.json is a file; expected a folder of images"),
        (["BUNDLE", "-o", "out"], "this is a bundle; give the checkpoint that it was exported from"),
        (["check", "BEST"], "this is a checkpoint; export it first with tnn-export BEST -o BUNDLE"),
        (["ensemble", "BEST", "BEST", "-o", "out"], "this is a checkpoint; export it first with tnn-export BEST"),
        (["check", "RUN"], "this is a training run; export it first with tnn-export BEST -o BUNDLE"),
        (["RUN", "-o", "out"], "is a run; give one of its checkpoints: "),
        (
            ["BEST", "-o", "."],
            ". already exists; choose another output folder or pass --overwrite",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(
    arguments: list[str],
    message: str,
    runs: dict[str, TrainResult],
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = runs["linear"]
    places = {"BEST": run.best, "RUN": run.folder, "BUNDLE": bundles["linear"]}
    words = [re.sub("^(BEST|RUN|BUNDLE)", lambda name: str(places[name[0]]), word) for word in arguments]
    message = message.replace("BEST", str(run.best))
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (["--opset", "13", "--formats", "torchscript"], ["--opset does nothing with --formats torchscript"]),
        (["--calibration", "PHOTOS"], ["--calibration does nothing with --precision fp32"]),
        (["--calibration", "PHOTOS", "--precision", "fp16"], ["--calibration does nothing with --precision fp16"]),
        (["--opset", "13", "--formats", "onnx"], []),
        (["--opset", "20", "--formats", "torchscript"], []),
    ],
)
def test_options_that_do_nothing_are_told(
    options: list[str],
    notes: list[str],
    runs: dict[str, TrainResult],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tnn_export.commands.export.export_bundle", lambda *arguments, **others: 1 / 0)
    words = [str(photos) if word == "PHOTOS" else word for word in options]
    with pytest.raises(ZeroDivisionError):
        main([str(runs["linear"].best), "-o", str(tmp_path / "out"), *words])
    assert capsys.readouterr().err.splitlines() == [f"tnn-export: note: {note}" for note in notes]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["inspet", "b"],
            "'inspet' is no command, and no checkpoint folder; did you mean 'inspect'?; see tnn-export --help",
        ),
        (["chek", "b", "--device", "cpu"], "'chek' is no command, and no checkpoint folder; did you mean 'check'?"),
        (["imports", "-o", "x"], "'imports' is no command, and no checkpoint folder; did you mean 'import'?"),
        (["Sign", "b", "--key", "k"], "did you mean 'sign'?"),
        (["show", "b"], "'show' is no command, and no checkpoint folder; see tnn-export --help"),
        (["runs/nowhere"], "'runs/nowhere' is no command, and no checkpoint folder; see"),
    ],
)
def test_an_unknown_command_is_not_taken_for_a_checkpoint(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    Path("chek").mkdir()
    assert main(["chek", "-o", "x"]) == 1
    assert "chek has no config.json; expected a checkpoint folder" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "tnn-export runs/photos/best -o runs/photos-bundle" in text
    assert "in a process of its own" in " ".join(text.split())


@pytest.mark.parametrize(
    ("precision", "formats", "left_out"),
    [
        ("fp32", ("onnx", "torchscript"), []),
        ("fp16", ("onnx", "torchscript"), []),
        ("bf16", ("torchscript",), ["onnx is left out, as it cannot be exported in bf16"]),
        ("int8", ("onnx",), ["torchscript is left out, as it cannot be exported in int8"]),
    ],
)
def test_without_formats_those_are_made_that_can_have_the_precision(
    precision: str, formats: tuple[str, ...], left_out: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    parser = Parser("tnn-export")
    add_export_options(parser)
    assert export_options(parser.parse_args(["--precision", precision])).formats == formats
    assert caplog.messages == left_out
