"""The examples that serve a bundle: each does what it says, and ends as it says."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FIXTURES, draw_photos
from PIL import Image
from waiting import FOREVER

from tnn_runtime import (
    Classifier,
    ClassifierClosed,
    DeviceLost,
    InputError,
    QueueFull,
    RunError,
    UsageError,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
BUNDLE = FIXTURES / "bundle-v2"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, a file that is none, and a hidden one."""
    photos = draw_photos(tmp_path / "photos", 2)
    (photos / "cat" / "bad.png").write_text("no image")
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "x.png").touch()
    return photos


class TestFolder:
    @pytest.fixture
    def example(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        found = load("classify_folder", monkeypatch)
        monkeypatch.setattr("tnn_runtime.bulk._IN_FLIGHT", 3)
        return found

    def test_csv_and_jsonl(
        self, example: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [str(BUNDLE), str(folder), "--device", "cpu", "--top-k", "2", "--out"]
        example.command([*arguments, str(tmp_path / "labels.csv")])
        assert "4 images classified, 1 files with an error" in capsys.readouterr().out
        rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
        assert [Path(row["path"]).relative_to(folder).as_posix() for row in rows if row["rank"] != "2"] == [
            *("cat/0.png", "cat/1.png", "cat/bad.png", "dog/0.png", "dog/1.png")
        ]
        assert len(rows) == 2 * 4 + 1
        assert [row["error"].partition(" is not ")[0] for row in rows if row["error"]] == [
            str(folder / "cat" / "bad.png")
        ]
        example.command([*arguments, str(tmp_path / "labels.jsonl")])
        lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
        assert [sorted(line) for line in lines] == [["path", "predictions"]] * 2 + [["error", "path"]] + [
            ["path", "predictions"]
        ] * 2
        with Classifier.load(BUNDLE, "cpu") as classifier:
            for line in lines:
                if "predictions" in line:
                    (ranked,) = classifier.predict([line["path"]])
                    assert [found["label"] for found in line["predictions"]] == [best.label for best in ranked]

    @pytest.mark.parametrize("error", [DeviceLost, KeyboardInterrupt])
    def test_nothing_is_left_half_written(
        self,
        example: ModuleType,
        folder: Path,
        tmp_path: Path,
        error: type[BaseException],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        submit, calls = Classifier.submit, []

        def fail(*arguments: object, **options: object) -> object:
            calls.append(arguments)
            if len(calls) == 5:
                raise error("it failed")
            return submit(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Classifier, "submit", fail)
        (tmp_path / "out").mkdir()
        out = tmp_path / "out" / "labels.csv"
        out.write_text("the old one")
        assert example.run("x", example.command, [str(BUNDLE), str(folder), "--out", str(out), "--device", "cpu"]) > 0
        assert out.read_text() == "the old one"
        assert os.listdir(out.parent) == [out.name]

    @pytest.mark.parametrize(
        ("folder_name", "out", "message"),
        [
            ("photos", "labels.txt", "labels.txt; expected a file that ends with .csv or .jsonl, in a folder that"),
            (
                "photos",
                "gone/labels.csv",
                "labels.csv; expected a file that ends with .csv or .jsonl, in a folder that",
            ),
            ("nothing", "labels.csv", "nothing is no folder; expected one with images in it"),
            ("empty", "labels.csv", "empty has no files; expected images"),
            ("bad", "labels.csv", "bad can be used; labels.csv says why; expected images"),
        ],
    )
    def test_wrong_arguments(
        self,
        example: ModuleType,
        tmp_path: Path,
        folder_name: str,
        out: str,
        message: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("photos", "empty", "bad"):
            (tmp_path / name).mkdir()
        (tmp_path / "bad" / "note.txt").write_text("no image")
        assert example.run("classify_folder", example.command, [str(BUNDLE), folder_name, "--out", out]) == 1
        assert message in capsys.readouterr().err


WORKERS = f"""
import os, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import worker_pool
worker_pool.ATTEMPTS, worker_pool.TIMEOUT_S = 1_000_000, {FOREVER}
stop = worker_pool.WorkerPool.stop

def told(pool):
    stop(pool)
    os.write(2, b"stopping\\n")

worker_pool.WorkerPool.stop = told
sys.exit(worker_pool.run("worker_pool", worker_pool.command))
"""
"""The example, without its limits of time; it says when it has heard a signal."""


class TestWorkers:
    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start the workers, whose output waits in a pipe of few lines."""
        command = [sys.executable, "-c", WORKERS, str(BUNDLE), *map(str, arguments), "--device", "cpu"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pipesize=4096)

    def test_every_message_is_done_though_the_queue_is_full(self, folder: Path) -> None:
        with self.start(folder, "--workers", 4, "--max-queue-size", 1) as process:
            out, error = process.communicate(timeout=FOREVER)
        assert process.returncode == 0, error
        *lines, last = out.splitlines()
        assert last == "4 classified, 1 put aside, 0 left in the queue"
        assert {Path(line.split("\t")[0]).name for line in lines} == {"0.png", "1.png", "bad.png"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_after_what_it_has(self, folder: Path, number: int) -> None:
        for copy in range(1000):
            os.link(folder / "cat" / "0.png", folder / "dog" / f"copy-{copy}.png")
        with self.start(folder, "--workers", 2) as process:
            watchdog = threading.Timer(FOREVER, process.kill)
            watchdog.start()
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                first = process.stdout.readline()
                process.send_signal(number)
                assert process.stderr.readline() == "stopping\n"
                out = process.stdout.read()
                code = process.wait(FOREVER)
            finally:
                watchdog.cancel()
                process.kill()
        assert code == 0
        *lines, last = (first + out).splitlines()
        found = re.fullmatch(r"(\d+) classified, (\d+) put aside, (\d+) left in the queue", last)
        assert found is not None
        done, bad, left = map(int, found.groups())
        assert done + bad == len(lines)
        assert left > 0
        assert done + bad + left == 1005

    def test_workers_wait_and_try_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        example = load("worker_pool", monkeypatch)
        monkeypatch.setattr(example, "FIRST_WAIT_S", 0.0)
        monkeypatch.setattr(example, "TIMEOUT_S", FOREVER)
        submit, calls = Classifier.submit, []

        def refuse(*arguments: object, **options: object) -> object:
            calls.append(arguments)
            if len(calls) < 5:
                raise (QueueFull, RunError)[len(calls) % 2]("no room")
            return submit(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Classifier, "submit", refuse)
        messages = example.queue.SimpleQueue()
        messages.put(folder / "cat" / "0.png")
        with Classifier.load(BUNDLE, "cpu") as classifier:
            pool = example.WorkerPool(classifier, messages, 1)
            pool.start()
            pool.join()
        assert (pool.done, pool.bad, len(calls)) == (1, 0, 5)

    def test_a_lost_device_leaves_the_message_to_others(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        example = load("worker_pool", monkeypatch)
        messages = example.queue.SimpleQueue()
        for name in ("0.png", "1.png"):
            messages.put(folder / "cat" / name)
        with Classifier.load(BUNDLE, "cpu") as classifier:
            classifier.drain()
            pool = example.WorkerPool(classifier, messages, 1)
            pool.start()
            pool.join()
        assert isinstance(pool.failure, ClassifierClosed)
        assert (pool.done, messages.qsize()) == (0, 2)

    def test_wrong_arguments(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        example = load("worker_pool", monkeypatch)
        with pytest.raises(UsageError, match="argument --workers: got '0'; expected an integer of at least 1"):
            example.command([str(BUNDLE), str(folder), "--workers", "0"])
        (folder / "empty").mkdir()
        with pytest.raises(InputError, match="empty has no files; expected images"):
            example.command([str(BUNDLE), str(folder / "empty")])


class TestDrawing:
    def test_a_picture_is_drawn(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        example = load("draw_explanation", monkeypatch)
        example.command([str(BUNDLE), str(folder / "cat" / "0.png"), "-o", str(tmp_path / "why.png")])
        assert f"wrote {tmp_path / 'why.png'}: cat: " in capsys.readouterr().out
        with Image.open(tmp_path / "why.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100
