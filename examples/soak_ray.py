"""Load on Ray Serve while it is deployed again, and while a replica is killed: is anything lost or wrong?

    python examples/soak_ray.py runs/photos-bundle runs/photos-bundle-2 --clients 64 --rounds 3

It starts Ray on this machine. Clients over HTTP and gRPC send one image after the other, and compare every answer with
what the bundles say of that image. In each round the application is deployed again, with the other bundle and back with
other arguments, each of which starts new replicas. An error is every answer but a right one.

Then a replica is killed (SIGKILL) in each round. Requests that it held, or that come before another one has taken its
place, may be told to come again (503 with Retry-After, or UNAVAILABLE), and nothing else may happen to them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from soak_server import MODEL, Load, Server, noise

from tnn_runtime import Classifier, TnnError
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.server.ray import build

REST_S = 5.0
LOST_S = 10.0


class Proxies(Server):
    """The proxies of Ray, which clients may always ask."""

    def __init__(self) -> None:
        super().__init__(Path(), (free_port(), free_port()), Path())
        self.channel: grpc.aio.Channel = grpc.aio.insecure_channel(self.grpc)
        self.is_ready = True

    def start_ray(self, folder: Path) -> None:
        """Start Ray on this machine with its files in a folder, and its proxies."""
        os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "tnn_runtime.server.ray:proxy_middleware"
        ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(folder)
        )
        http, over_grpc = (int(address.rsplit(":", 1)[1]) for address in (self.http, self.grpc))
        functions = ["tnn_runtime.server.ray.add_servicer"]
        serve.start(
            http_options=HTTPOptions(port=http),
            grpc_options=gRPCOptions(port=over_grpc, grpc_servicer_functions=functions),
        )


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deploy(bundle: Path, max_queue_size: int) -> None:
    """Deploy a bundle, and wait until it serves."""
    options = {"device": "cpu", "threads": 1, "max_batch_size": 32, "max_queue_size": max_queue_size}
    serve.run(build({"models": {MODEL: str(bundle.resolve())}, **options}), name="soaked")


def replicas(folder: Path) -> list[int]:
    """Return the processes of the replicas of the cluster that has its files in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, TypeError):
            parent = re.search(r"\nPPid:\t(\d+)", (process / "status").read_text())
            above = Path("/proc", parent[1], "cmdline").read_text()  # type: ignore[index]
            if (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica") and str(folder) in above:
                found.append(int(process.name))
    return found


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    """Do it, and return whether all was well."""
    files = list(noise(0))
    expected = []
    for bundle in options.bundles:
        with Classifier.load(bundle, "cpu") as classifier:
            expected.append(classifier.logits(files))
    proxies = Proxies()
    await asyncio.to_thread(proxies.start_ray, folder)
    await asyncio.to_thread(deploy, options.bundles[0], 1000)
    load = Load([proxies], files, expected)
    clients = [asyncio.create_task(load.client(number % 2 == 1)) for number in range(options.clients)]
    findings, started = load.findings, time.monotonic()

    def tell(what: str) -> None:
        print(
            f"{time.monotonic() - started:5.0f} s  {what}: {findings.right} right, {findings.refused} asked to come "
            f"again, {findings.wrong.total()} wrong",
            *(f"\n  wrong: {wrong}: {count}" for wrong, count in findings.wrong.items()),
            flush=True,
        )

    for number in range(options.rounds):
        for bundle, max_queue_size in ((options.bundles[1], 1000), (options.bundles[0], 1001 + number)):
            await asyncio.sleep(REST_S)
            await asyncio.to_thread(deploy, bundle, max_queue_size)
            tell("deployed again")
    await asyncio.sleep(REST_S)
    findings.overloaded = True
    for _ in range(options.rounds):
        killed = replicas(folder)[0]
        os.kill(killed, signal.SIGKILL)
        while not (now := replicas(folder)) or killed in now:
            await asyncio.sleep(0.1)
        await asyncio.sleep(LOST_S)
        tell("killed")
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await proxies.channel.close()
    return not findings.wrong


def command(words: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("soak_ray.py", __doc__ or "")
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE", help="two bundles with the same classes")
    parser.add_argument("--clients", type=positive_int, default=64, metavar="N", help="at once")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="how often to do it all")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        try:
            is_well = asyncio.run(soak(options, Path(folder)))
        finally:
            ray.shutdown()
    if not is_well:
        raise TnnError("some answers were wrong, or did not come")


if __name__ == "__main__":
    sys.exit(run("soak_ray.py", command))
