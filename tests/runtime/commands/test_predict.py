from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tnn_runtime import Classifier
from tnn_runtime.__main__ import main
from tnn_train import ImageData


def test_predict_prints_a_line_for_each_image(
    bundles: dict[str, Path], data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(source) for source in data.test.sources]
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        expected = classifier.predict(paths, top_k=2)
    assert main(["predict", str(bundles["tversky"]), *paths, "--top-k", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == paths
    assert [line.split()[1::2] for line in lines] == [[p.label for p in ranked] for ranked in expected]
    assert main(["predict", str(bundles["tversky"]), *paths, "--top-k", "2", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["path"], row["rank"], row["label"]) for row in rows] == [
        (path, str(rank), p.label)
        for path, ranked in zip(paths, expected, strict=True)
        for rank, p in enumerate(ranked, 1)
    ]
    assert main(["predict", str(bundles["tversky"]), *paths, "--format", "jsonl"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["path"] == paths[0]
    assert first["predictions"][0]["label"] == expected[0][0].label


def test_predict_takes_folders(bundles: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(bundles["tversky"]), str(photos)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40


@pytest.mark.parametrize("style", ["text", "csv", "jsonl"])
def test_files_that_cannot_be_used_do_not_stop_the_others(
    style: str, bundles: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    for name in ("a.png", "cat/b.png"):
        (folder / name).write_text("no image")
    assert main(["predict", str(bundles["tversky"]), str(folder), "--format", style]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 40 + (style == "csv")
    first, last = captured.err.splitlines()
    assert first.startswith(f"tnn-runtime: {folder / 'a.png'} is not an image that can be read")
    assert last.startswith(f"tnn-runtime: error: {folder / 'cat' / 'b.png'} is not an image that can be read")
    assert last.endswith("; 2 of 42 files cannot be used")


@pytest.mark.parametrize("style", ["text", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("paths", "answers", "end"),
    [
        (["empty", "good.png"], 1, "empty has no files; expected images"),
        (["good.png", "empty", "photos"], 41, "empty has no files; expected images"),
        (["empty", "hidden", "good.png"], 1, "hidden has no files; expected images"),
        (["empty", "note.txt", "good.png"], 1, "; 1 of 2 files cannot be used"),
        (["empty"], 0, "empty has no files; expected images"),
    ],
)
def test_an_empty_folder_does_not_stop_the_others(
    paths: list[str],
    answers: int,
    end: str,
    style: str,
    small_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "hidden/.thumbnails"):
        Path(name).mkdir(parents=True)
    Path("note.txt").write_text("no image")
    shutil.copy(photos / "cat" / "0.png", "good.png")
    shutil.copytree(photos, "photos")
    assert main(["predict", str(small_bundle), *paths, "--format", style]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == answers + (style == "csv")
    lines = captured.err.splitlines()
    assert len(lines) == len({"empty", "hidden", "note.txt"} & set(paths))
    assert lines[0].endswith("empty has no files; expected images")
    assert lines[-1].startswith("tnn-runtime: error: ")
    assert lines[-1].endswith(end)


def test_doctor_prints_a_line_for_each_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line[:2] in ("ok", "--") for line in lines)
    assert any("device cpu" in line and "CPUExecutionProvider" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["predict", "BUNDLE", "note.txt", "--top-k", "2.5"], "argument --top-k: got '2.5'; expected an integer; see"),
        (["predict", "BUNDLE", "x.png", "--x"], "unrecognized arguments: --x; see tnn-runtime predict --help"),
        (["serve", "p=BUNDLE", "--x"], "unrecognized arguments: --x; see tnn-runtime serve --help"),
        (["serve", "p=BUNDLE", "--drain-s", "x"], "argument --drain-s: got 'x'; expected a number; see"),
        (["train"], "invalid choice: 'train' (choose from 'predict', 'explain', 'serve', 'bench', 'doctor')"),
        (["predict"], "the following arguments are required: bundle, images"),
        (["predict", "nowhere", "x.png"], "nowhere does not exist; expected a bundle folder with manifest.json in it"),
        (["predict", "BUNDLE", "x.png"], "x.png does not exist; expected an image file"),
        (["predict", "BUNDLE", "empty"], "empty has no files; expected images"),
        (["predict", "BUNDLE", "note.txt"], "note.txt is not an image that can be read"),
        (["predict", "BUNDLE", "note.txt", "--top-k", "0"], "top_k is 0; expected an integer of at least 1"),
        (
            ["predict", "BUNDLE", "note.txt", "--device", "tpu"],
            "unknown device 'tpu'; choose auto, cpu, compiled, cuda, cuda:N, tensorrt or tensorrt:N",
        ),
        (["predict", "BUNDLE", "note.txt", "--format", "xml"], "invalid choice: 'xml'"),
        (
            ["bench", "BUNDLE", "BUNDLE", "--json", "gone/x.json"],
            "gone/x.json has no folder to lie in; make ",
        ),
        (["bench", "BUNDLE", "nowhere"], "nowhere does not exist; expected a bundle folder"),
        (["bench", "BUNDLE", "BUNDLE", "--plots", "note.txt"], "note.txt is a file; choose a folder for --plots"),
        (["bench", "BUNDLE", "BUNDLE", "--batch", "0"], "argument --batch: got '0'; expected an integer of at least 1"),
        (["bench", "BUNDLE", "BUNDLE", "--batch", "x"], "argument --batch: got 'x'; expected an integer of at least 1"),
        (["bench", "BUNDLE", "BUNDLE", "--seed", "-1"], "seed is -1; expected 0 or more"),
        (
            ["bench", "BUNDLE", "BUNDLE", "--plots", "/proc/plots"],
            "/proc/plots cannot be made in /proc (No such file or directory); choose another folder for --plots",
        ),
        (["bench", "BUNDLE", "BUNDLE", "--margin", "2"], "margin is 2.0; expected a share above 0 and up to 1"),
        (["bench", "BUNDLE", "BUNDLE", "--device", "tpu"], "unknown device 'tpu'; choose"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(
    arguments: list[str],
    message: str,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no image")
    assert main([argument.replace("BUNDLE", str(bundles["tversky"])) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tnn-runtime: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("command", ["predict", "explain", "bench"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"tnn-runtime {command} runs/" in capsys.readouterr().out


STRANGE_FILES = (
    b"caf\xe9.png",
    b"a\rb.png",
    b"\x1b[31mred\nline.png",
    "abc\u202egnp.png".encode(),
    "naïve 猫.png".encode(),
)


@pytest.fixture(scope="module")
def strangely_named(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("strange")
    for name in STRANGE_FILES:
        shutil.copy(photos / "cat" / "0.png", folder / os.fsdecode(name))
    return folder


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1", "utf-8"])
@pytest.mark.parametrize("style", ["text", "csv", "jsonl"])
def test_files_of_any_name_are_classified_on_a_terminal_of_any_encoding(
    encoding: str, style: str, small_bundle: Path, strangely_named: Path
) -> None:
    named = strangely_named / os.fsdecode(STRANGE_FILES[0])
    command = [sys.executable, "-m", "tnn_runtime", "predict", small_bundle, named, strangely_named, "--format", style]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding.partition(":")[0])
    paths = [str(named), *sorted(str(strangely_named / os.fsdecode(name)) for name in STRANGE_FILES)]
    if style == "jsonl":
        assert [json.loads(line)["path"] for line in out.splitlines()] == paths
    elif style == "csv":
        found = [row["path"] for row in csv.DictReader(io.StringIO(out, newline=""))]
        codec = encoding.partition(":")[0]
        assert found == [path.encode(codec, "backslashreplace").decode(codec) for path in paths]
    else:
        assert len(out.split("\n")) == len(paths) + 1
        assert all(character.isprintable() for line in out.split("\n") for character in line)
        assert all(word in out for word in (r"caf\udce9.png", r"a\rb.png", r"\x1b[31mred\nline.png"))


@pytest.mark.parametrize("label", ["\x1b[31mred", "two\nlines", "a\rb", "\u202etac"])
def test_labels_and_errors_reach_the_terminal_escaped(
    label: str, small_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    manifest["class_names"] = [f"{label}{place}" for place, _ in enumerate(manifest["class_names"])]
    (small_bundle / "manifest.json").write_text(json.dumps(manifest))
    photo = str(photos / "cat" / "0.png")
    assert main(["predict", str(small_bundle), photo, f"{label}.png"]) == 1
    captured = capsys.readouterr()
    (line,), (error,) = captured.out.splitlines(), captured.err.splitlines()
    assert all(character.isprintable() for character in line + error)
    assert repr(label)[1:-1] in line
    assert repr(label)[1:-1] in error
    assert main(["predict", str(small_bundle), photo, "--format", "csv"]) == 0
    row = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))[1]
    assert row[2][:-1] == label
