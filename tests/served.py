"""The command ``tnn-runtime serve`` in a process of its own, and requests to it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from waiting import FOREVER

__all__ = ["NO_DELAY", "Served", "served", "serving"]

NO_DELAY = ("--ready-delay-s", "0")


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Args:
        http: Where it listens for HTTP, host and port.
        grpc: Where it listens for gRPC; empty for nowhere.
        process: Its process.
        log: What it has printed on standard error, all of it once it has ended.
    """

    http: str
    grpc: str
    process: subprocess.Popen[str]
    log: Path

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Return the answer to a request on a connection of its own."""
        return httpx.request(method, f"http://{self.http}{path}", timeout=FOREVER, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: object) -> httpx.Response:
        return self.request("POST", path, **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(FOREVER)


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[Served]:
    """Start the command with arguments, on a free port if they name none; end it if it runs yet.

    Args:
        folder: Where its log goes.
    """
    log = folder / "serve.log"
    command = [sys.executable, "-m", "tnn_runtime", "serve", "--http", "127.0.0.1:0", *map(str, arguments)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    watchdog = threading.Timer(4 * FOREVER, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        wants_grpc = "--grpc" in command
        found: dict[str, str] = {}
        while len(found) < 1 + wants_grpc:
            line = process.stdout.readline()
            assert line, log.read_text()
            if match := re.match("(https?|grpcs?)://([^ ]+)", line.strip()):
                found[match[1].removesuffix("s")] = match[2]
        yield Served(found["http"], found.get("grpc", ""), process, log)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(FOREVER)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


@contextmanager
def served(folder: Path, *arguments: object, http: str = "127.0.0.1:0") -> Iterator[str]:
    """Start the command on the CPU, and yield where it serves; it ends with 0."""
    options = ("--device", "cpu", "--threads", "1", "--http", http, *NO_DELAY)
    with serving(folder, *map(str, arguments), *options) as server:
        yield f"http://{server.http}"
        assert server.end() == 0, server.log.read_text()
