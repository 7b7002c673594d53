"""The examples that serve a bundle: each does what it says, and ends as it says."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FIXTURES, draw_photos
from PIL import Image
from serving import Client, running
from waiting import FOREVER, until

from tnn_runtime import (
    Classifier,
    ClassifierClosed,
    DeadlineExceeded,
    DeviceLost,
    InputError,
    QueueFull,
    RunError,
    TnnError,
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


@pytest.fixture
def image(folder: Path) -> bytes:
    return (folder / "cat" / "0.png").read_bytes()


class TestService:
    @pytest.fixture
    def service(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.setenv("TNN_BUNDLE", str(BUNDLE))
        monkeypatch.setenv("TNN_DEVICE", "cpu")
        found = load("service", monkeypatch)
        monkeypatch.setattr(found, "TIMEOUT_S", FOREVER)
        return found

    @pytest.fixture
    def client(self, service: ModuleType) -> Iterator[Client]:
        with running(service) as client:
            yield client
        assert service.app.state.classifier.health.reason == "this classifier is closed; load the bundle again"
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("tnn-")]

    def test_it_answers_what_the_classifier_answers(self, client: Client, image: bytes) -> None:
        with Classifier.load(BUNDLE, "cpu") as classifier:
            (ranked,), ((explanation, *_),) = classifier.predict([image]), classifier.explain([image])
        answer = client.post("/predict", content=image)
        assert answer.status_code == 200
        assert answer.json()["explanations"] is None
        assert [best["label"] for best in answer.json()["predictions"]] == [best.label for best in ranked]
        assert answer.json()["predictions"][0]["score"] == pytest.approx(ranked[0].score, rel=1e-5)
        answer = client.post("/predict?top_k=1&explain=true", content=image)
        (best,) = answer.json()["predictions"]
        assert (best["label"], best["index"]) == (ranked[0].label, ranked[0].index)
        assert best["score"] == pytest.approx(ranked[0].score, rel=1e-5)
        (found,) = answer.json()["explanations"]
        assert found["label"] == explanation.label
        assert found["logit"] == pytest.approx(explanation.logit, rel=1e-4)
        assert found["logit"] == pytest.approx(sum(part["sign"] * part["value"] for part in found["parts"]))
        assert found["formula"] == "common - input_only - prototype_only + bias"
        assert set(found["features"][0]) == {"index", "name", "parts"}

    @pytest.mark.parametrize(
        ("query", "body", "status", "message"),
        [
            ("", b"", 422, "the image is not an image that can be read (it has 0 bytes)"),
            ("", b"no image", 422, "the image is not an image that can be read"),
            ("?top_k=0", b"", 400, "top_k is 0; expected an integer of at least 1"),
            ("?top_k=many", b"", 400, "query.top_k is 'many': Input should be a valid integer"),
            ("?explain=perhaps", b"", 400, "valid boolean"),
        ],
    )
    def test_bad_requests(self, client: Client, query: str, body: bytes, status: int, message: str) -> None:
        answer = client.post(f"/predict{query}", content=body)
        assert answer.status_code == status
        assert message in answer.text
        assert answer.json()["detail"]

    def test_a_form_is_told_how_to_send_an_image(self, client: Client, image: bytes) -> None:
        answer = client.post("/predict", files={"file": image})
        assert answer.status_code == 415
        assert "curl --data-binary" in answer.json()["detail"]

    def test_a_large_body_is_not_read(
        self, client: Client, service: ModuleType, image: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "MAX_BODY", len(image))
        assert client.post("/predict", content=image).status_code == 200
        read = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(1000):
                read += 1
                yield image

        for content in (image + b"\0", body()):
            answer = client.post("/predict", content=content)
            assert answer.status_code == 413
            assert f"got more than {len(image)} bytes" in answer.json()["detail"]
        assert read < 5

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (InputError, 422),
            (UsageError, 400),
            (QueueFull, 503),
            (DeadlineExceeded, 504),
            (RunError, 503),
            (DeviceLost, 503),
            (ClassifierClosed, 503),
        ],
    )
    def test_every_error_has_its_status(
        self, client: Client, image: bytes, error: type[TnnError], status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*arguments: object) -> None:
            raise error("it failed; try something else")

        monkeypatch.setattr(Classifier, "predict_async", fail)
        answer = client.post("/predict", content=image)
        assert answer.status_code == status
        assert answer.json() == {
            "code": error.code,
            "detail": "it failed; try something else",
            "retryable": status >= 503,
            "index": None,
        }
        assert ("retry-after" in answer.headers) == (status == 503)

    def test_health_and_metrics(self, client: Client, service: ModuleType, image: bytes) -> None:
        assert client.get("/health/live").json() == {"live": True}
        assert client.get("/health/ready").json() == {"ready": True, "reason": "", "waiting": 0, "open_requests": 0}
        client.post("/predict", content=image)
        metrics = client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        version = service.app.state.classifier.info["version"]
        assert f'tnn_images_total{{model="bundle-v2",version="{version}"}} 1.0' in metrics.text
        service.app.state.classifier.drain()
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        assert "drains" in client.get("/health/ready").json()["reason"]
        assert client.post("/predict", content=image).status_code == 503
        assert f'tnn_ready{{model="bundle-v2",version="{version}"}} 0.0' in client.get("/metrics").text

    def test_its_description_tells_of_the_body(self, client: Client) -> None:
        described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert "image/*" in described["requestBody"]["content"]
        assert {parameter["name"] for parameter in described["parameters"]} == {"top_k", "explain"}


SERVER = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import service, uvicorn
service.TIMEOUT_S = {FOREVER}
uvicorn.main(["service:app", "--port", "0"])
"""


def test_the_service_answers_what_it_has_accepted_when_it_is_told_to_end(image: bytes) -> None:
    environment = {**os.environ, "TNN_BUNDLE": str(BUNDLE), "TNN_DEVICE": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    connections: list[socket.socket] = []
    watchdog = threading.Timer(FOREVER, process.kill)
    watchdog.start()
    try:
        log: list[str] = []
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log[-1] if log else "")):
            log.append(process.stderr.readline())
            assert log[-1], "".join(log)
        address = ("127.0.0.1", int(found[1]))
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\nExpect: 100-continue\r\n\r\n"
        for _ in range(12):
            connections.append(socket.create_connection(address, FOREVER))
            connections[-1].sendall(head.encode())
        for connection in connections:
            assert b"100 Continue" in connection.recv(1000)
        process.send_signal(signal.SIGTERM)
        until(lambda: not is_open(address))
        for connection in connections:
            connection.sendall(image)
        for connection in connections:
            answer = b"".join(iter(lambda connection=connection: connection.recv(10_000), b""))
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"][0]["label"] in ("cat", "dog")
        rest = process.stderr.read()
        assert "Application shutdown complete" in rest
        assert "Traceback" not in rest
        assert process.wait(FOREVER) in (0, -signal.SIGTERM)
    finally:
        watchdog.cancel()
        for connection in connections:
            connection.close()
        process.kill()
        process.communicate()


def is_open(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, FOREVER).close()
    except ConnectionError:
        return False
    return True


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
