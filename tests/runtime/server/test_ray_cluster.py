"""A cluster of Ray on this machine: the protocol through its proxies, replicas that are killed, and files in bulk."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest
import ray
import tritonclient.grpc
from conftest import FIXTURES, draw_photos
from probe import CHECKS, Known, Server, run
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from rooms import ROOT
from tritonclient.utils import InferenceServerException
from waiting import FOREVER, until

from tnn_runtime import Classifier
from tnn_runtime.server.ray import build

pytestmark = pytest.mark.slow

BUNDLE = FIXTURES / "bundle-v5"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the cluster runs and has its files: a short path, as those of sockets have to be.

    There are photos and their bundle, as the page on Ray takes them, and two files that are no images.
    """
    made = Path(tempfile.mkdtemp(prefix="ray"))
    draw_photos(made / "photos", 10)
    (made / "photos" / "cat" / "9.png").write_text("no image")
    (made / "photos" / "dog" / "9.png").write_bytes(b"")
    (made / "runs").mkdir()
    (made / "runs" / "photos-bundle").symlink_to(BUNDLE)
    (made / "examples").symlink_to(ROOT / "examples")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    http, grpc = free_port(), free_port()
    terminate = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "tnn_runtime.server.ray:proxy_middleware")
        environment.chdir(folder)
        environment.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=str(folder))
        try:
            functions = ["tnn_runtime.server.ray.add_servicer"]
            serve.start(
                http_options=HTTPOptions(port=http),
                grpc_options=gRPCOptions(port=grpc, grpc_servicer_functions=functions),
            )
            options = {"device": "cpu", "threads": 1, "max_batch_size": 4}
            serve.run(build({"models": {"photos": str(BUNDLE)}, **options}), name="tnn")
            yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", "photos", "photos")
            serve.shutdown()
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, terminate)


@pytest.fixture(scope="module")
def known(folder: Path) -> Known:
    return Known.of(BUNDLE, folder / "photos" / "cat" / "0.png")


def test_the_proxies_answer_as_the_server_does(server: Server, known: Known) -> None:
    found = {name: (expected, run(server, known, name)) for name, (expected, _) in CHECKS.items()}
    assert {name: both for name, both in found.items() if both[0] != both[1]} == {}


def replicas(folder: Path) -> list[int]:
    """Return the processes of the replicas of the cluster that has its files in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = re.search(r"\nPPid:\t(\d+)", (process / "status").read_text())
            above = Path("/proc", parent[1], "cmdline").read_text() if parent else ""
            if (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica") and str(folder) in above:
                found.append(int(process.name))
    return found


def test_a_replica_that_is_killed_loses_what_it_held(server: Server, known: Known, folder: Path) -> None:
    url = f"http://{server.http}"
    waits = {"device": "cpu", "threads": 1, "max_batch_size": 4, "max_queue_delay_ms": 1000 * FOREVER}
    serve.run(build({"models": {"photos": str(BUNDLE)}, **waits}), name="tnn")
    until(lambda: len(replicas(folder)) == 1)
    image = tritonclient.grpc.InferInput("images", list(known.pixels[:1].shape), "UINT8")
    image.set_data_from_numpy(known.pixels[:1])

    def over_http() -> httpx.Response:
        return httpx.post(f"{url}/predict", content=known.file, timeout=FOREVER)

    def over_grpc() -> Any:
        client = tritonclient.grpc.InferenceServerClient(server.grpc)
        return client.infer("photos", [image], client_timeout=FOREVER)

    with ThreadPoolExecutor() as pool:
        held = [pool.submit(over_http) for _ in range(2)]
        lost = pool.submit(over_grpc)
        until(lambda: re.search(r"^tnn_waiting_images\{.*\} 3\.0$", httpx.get(f"{url}/metrics").text, re.MULTILINE))
        (killed,) = replicas(folder)
        os.kill(killed, signal.SIGKILL)
        for future in held:
            answer = future.result()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"].startswith("no replica answered this request")
        with pytest.raises(InferenceServerException, match="no replica answered this request") as refused:
            lost.result()
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
        again = [pool.submit(over_http) for _ in range(4)]  # They wait for the replica that Ray starts.
        assert [future.result().status_code for future in again] == [200] * 4
    assert killed not in replicas(folder)


def labelled(rows: list[dict[str, Any]]) -> None:
    """Make sure that rows have the labels and scores of the classifier."""
    with Classifier.load(BUNDLE, "cpu", threads=1) as classifier:
        for row, ranked in zip(rows, classifier.predict([row["path"] for row in rows], 2), strict=True):
            assert row["label"] == [best.label for best in ranked]
            assert row["score"] == pytest.approx([best.score for best in ranked], rel=1e-4)


def page(language: str) -> str:
    """Return the first block of a language on the page on Ray that names the photos."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "ray.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "photos" in block)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # It sets what it warns of.
def test_the_python_of_the_page_runs(server: Server, folder: Path) -> None:
    exec(page("python"), {})
    rows = pyarrow.parquet.read_table(folder / "labels").to_pylist()
    assert [row["path"] for row in rows] == ["photos/cat/0.png", "photos/dog/0.png"]
    labelled(rows)
    shutil.rmtree(folder / "labels")


def test_the_example_of_the_page_runs(server: Server, folder: Path) -> None:
    words = shlex.split(page("sh"))
    assert words[0] == "python"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    ended = subprocess.run(
        [sys.executable, *words[1:], "--top-k", "2"], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    assert "18 images classified, 2 files with an error" in ended.stdout
    rows = pyarrow.parquet.read_table(folder / "labels").to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(map(str, (folder / "photos").rglob("*.png")))
    assert {Path(row["path"]).name for row in rows if row["error"]} == {"9.png"}
    assert not any(row["label"] for row in rows if row["error"])
    labelled([row for row in rows if not row["error"]])
