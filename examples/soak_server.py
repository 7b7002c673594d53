"""Load on servers that are reloaded, ended and started again, and overloaded: is anything lost, wrong or leaked?

    python examples/soak_server.py runs/photos-bundle runs/photos-bundle-2 --minutes 10 --clients 64

It starts two servers, ``tnn-runtime serve``, with the first bundle. Clients over HTTP and gRPC send images to a server
that says that it is ready, and compare every answer with what the bundles say of that image. Meanwhile, in turns, the
bundle of the first server is exchanged for the other one and loaded again (SIGHUP), and the second server is ended
(SIGTERM) and started again. In the last fifth of the time more clients come than can be served.

An error is every answer but a right one; in the overload also all but status 503 with Retry-After, which asks to come
again. The exit code is 1 if there is one, if a server does not end with 0, or if memory has grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tnn_runtime import Classifier

MODEL = "soaked"
IMAGES = 64
LOOK_S = 0.25
LOOKED_S = 30.0
TURN_S = 10.0
OVERLOAD = 8
"""How many times as many clients come in the overload."""

QUEUE = 128
"""Images that may wait in a server: fewer than there are clients then."""


@dataclass
class Findings:
    """What clients have seen."""

    right: int = 0
    refused: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    overloaded: bool = False

    def busy(self, is_polite: bool) -> None:
        """Count an answer of a server that has too much to do."""
        if self.overloaded and is_polite:
            self.refused += 1
        else:
            self.wrong["busy" if is_polite else "busy, and does not say when to come again"] += 1


class Server:
    """A server in a process of its own."""

    def __init__(self, bundle: Path, ports: tuple[int, int], log: Path) -> None:
        self.bundle, self.log = bundle, log
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in ports)
        self.is_ready = False
        self.process: asyncio.subprocess.Process | None = None
        self.channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        options = ["--http", self.http, "--grpc", self.grpc, "--device", "cpu", "--ready-delay-s", "2"]
        options += ["--max-queue-size", str(QUEUE)]
        with self.log.open("a") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tnn_runtime", "serve", f"{MODEL}={self.bundle}", *options, stdout=log, stderr=log
            )
        self.channel = grpc.aio.insecure_channel(self.grpc)
        while not await self.looks_ready():
            if self.process.returncode is not None:
                raise SystemExit(self.log.read_text())
            await asyncio.sleep(LOOK_S)
        self.is_ready = True

    async def looks_ready(self) -> bool:
        """Ask whether it is ready."""
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient(timeout=LOOKED_S) as client:
                return (await client.get(f"http://{self.http}/v2/health/ready")).status_code == 200
        return False

    async def watch(self) -> None:
        """Look again and again whether it is ready."""
        while True:
            self.is_ready = await self.looks_ready()
            await asyncio.sleep(LOOK_S)

    async def end(self) -> int:
        """End it, and return its exit code."""
        assert self.process is not None
        assert self.channel is not None
        self.process.send_signal(signal.SIGTERM)
        code = await self.process.wait()
        await self.channel.close()
        return code

    @property
    def memory_mib(self) -> float:
        """The memory that its process has, resident."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 2**20


class Load:
    """Clients, and what they know of the right answers."""

    def __init__(self, servers: list[Server], files: list[bytes], expected: list[NDArray[np.float32]]) -> None:
        self.servers, self.files, self.expected = servers, files, expected
        self.findings = Findings()

    async def client(self, over_grpc: bool) -> None:
        """Send one image after another to a server that is ready."""
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                ready = [server for server in self.servers if server.is_ready]
                if not ready:
                    self.findings.wrong["no server is ready"] += 1
                    await asyncio.sleep(LOOK_S)
                    continue
                which = random.randrange(len(self.files))  # noqa: S311
                server = random.choice(ready)  # noqa: S311
                ask = self._over_grpc(server, which) if over_grpc else self._over_http(client, server, which)
                try:
                    logits = await ask
                except (httpx.HTTPError, grpc.aio.AioRpcError) as error:
                    self.findings.wrong[f"{type(error).__name__} {str(error)[:300]}"] += 1
                    continue
                if logits is None:
                    await asyncio.sleep(random.random())  # noqa: S311
                elif any(np.allclose(logits, one[which], rtol=1e-3, atol=1e-3) for one in self.expected):
                    self.findings.right += 1
                else:
                    self.findings.wrong["not the answer for this image"] += 1

    async def _over_http(self, client: httpx.AsyncClient, server: Server, which: int) -> NDArray[np.float32] | None:
        headers = {"Inference-Header-Content-Length": "0"}
        answer = await client.post(
            f"http://{server.http}/v2/models/{MODEL}/infer", content=self.files[which], headers=headers
        )
        if answer.status_code == 503:
            self.findings.busy("retry-after" in answer.headers)
            return None
        answer.raise_for_status()
        length = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(answer.content[length : length + self.expected[0].shape[1] * 4], "<f4")

    async def _over_grpc(self, server: Server, which: int) -> NDArray[np.float32] | None:
        file = self.files[which]
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        request.inputs.add(name="files", datatype="BYTES", shape=[1]).contents.bytes_contents.append(file)
        request.outputs.add(name="logits")
        try:
            answer = await service_pb2_grpc.GRPCInferenceServiceStub(server.channel).ModelInfer(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and self.findings.overloaded:
                self.findings.busy(is_polite=True)
                return None
            raise
        return np.frombuffer(answer.raw_output_contents[0], "<f4")


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    """Do it, and return whether all was well."""
    files = list(noise(options.seed))
    expected = []
    for bundle in options.bundles:
        with Classifier.load(bundle, "cpu") as classifier:
            expected.append(classifier.logits(files))
    served = folder / "bundle"
    shutil.copytree(options.bundles[0], served)
    ports = [(options.port + 2 * place, options.port + 2 * place + 1) for place in range(2)]
    servers = [
        Server(served, ports[0], folder / "first.log"),
        Server(Path(options.bundles[0]).resolve(), ports[1], folder / "second.log"),
    ]
    for server in servers:
        await server.start()
    load = Load(servers, files, expected)
    tasks = [asyncio.create_task(server.watch()) for server in servers]
    tasks += [asyncio.create_task(load.client(number % 2 == 1)) for number in range(options.clients)]
    started, codes, memory, turns = time.monotonic(), list[int](), list[float](), 0
    end = started + 60 * options.minutes
    findings = load.findings
    while time.monotonic() < end:
        await asyncio.sleep(min(TURN_S, max(0.0, end - time.monotonic())))
        turns += 1
        if not findings.overloaded and time.monotonic() > started + 48 * options.minutes:
            findings.overloaded = True
            tasks += [asyncio.create_task(load.client(number % 2 == 1)) for number in range(OVERLOAD * options.clients)]
        if turns % 2:
            shutil.rmtree(served)
            shutil.copytree(options.bundles[turns // 2 % 2 - 1], served)
            assert servers[0].process is not None
            servers[0].process.send_signal(signal.SIGHUP)
        elif not findings.overloaded:
            codes.append(await servers[1].end())
            await servers[1].start()
        memory.append(servers[0].memory_mib)
        print(
            f"{time.monotonic() - started:5.0f} s  {findings.right} right, {findings.refused} asked to come again, "
            f"{findings.wrong.total()} wrong; {codes.count(0)} of {len(codes)} ended with 0; {memory[-1]:.0f} MiB"
            f"{'; overload' if findings.overloaded else ''}",
            *(f"\n  wrong: {what}: {count}" for what, count in findings.wrong.items()),
            flush=True,
        )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    codes += [await server.end() for server in servers]
    half = len(memory) // 2
    growth = float(np.mean(memory[half:]) / np.mean(memory[:half]) - 1) if half else 0.0
    print(f"memory of the second half of the time against the first: {growth:+.1%}")
    return not findings.wrong and not any(codes)


def noise(seed: int) -> Iterator[bytes]:
    """Yield image files of random colours."""
    random_numbers = np.random.default_rng(seed)
    for _ in range(IMAGES):
        small = random_numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((64, 64)).save(buffer, "jpeg")
        yield buffer.getvalue()


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs=2, metavar="BUNDLE", help="two bundles with the same classes")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=18200, help="the first of four")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return int(not asyncio.run(soak(options, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
