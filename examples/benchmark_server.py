"""What serving costs: images a second and latency over HTTP and gRPC, beside the classifier in this process.

    python examples/benchmark_server.py runs/photos-bundle --images photos/cat --clients 1 16 --threads 1

It starts ``tnn-runtime serve`` with the bundle. Clients that send one image file after the other take turns, block by
block and in random order, with as many that call `Classifier.answers_async` in this process ("in process"), and with a
second set of clients over HTTP, the control. Ratios are means over the blocks, of what happened in the same block, with
95% intervals (Student's t on logarithms). Other servers that run already take their turns with
``--server triton=127.0.0.1:8000,127.0.0.1:8001,photos``: HTTP, gRPC, and the name of the model.

Clients write requests that were made before, so that little of the time is theirs; yet they share the cores with what
they measure, as they do not in production.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from scipy import stats
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tnn_runtime import Classifier
from tnn_runtime.bench import machine
from tnn_runtime.console import Parser, positive_int, run

OUTPUT = "labels"
CONTROL = "HTTP again"
IN_PROCESS = "in process"

Ask = Callable[[int], Awaitable[object]]
"""Sends the image of a number, and waits for the answer."""


@dataclass
class Contender:
    """Something that answers.

    Args:
        connect: Returns what one client asks with.
    """

    connect: Callable[[], Awaitable[Ask]]
    seconds: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    async def block(self, clients: int, seconds: float) -> None:
        """Have clients ask for a while, and keep how long each answer took, and how many came in a second."""
        asks = [await self.connect() for _ in range(clients)]
        took: list[float] = []
        counter = itertools.count()
        started = time.perf_counter()

        async def client(ask: Ask) -> None:
            while (now := time.perf_counter()) < started + seconds:
                await ask(next(counter))
                took.append(time.perf_counter() - now)

        await asyncio.gather(*map(client, asks))
        self.rates.append(len(took) / (time.perf_counter() - started))
        self.seconds.append(took)
        for ask in asks:
            close = getattr(ask, "close", None)
            if close is not None:
                close()


class HttpClient:
    """One connection over HTTP, and requests that are ready to be written."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Sequence[bytes]) -> None:
        self._reader, self._writer, self._requests = reader, writer, requests

    async def __call__(self, number: int) -> bytes:
        """Send the image of a number, and return the body of the answer."""
        self._writer.write(self._requests[number % len(self._requests)])
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"\ncontent-length: (\d+)", head, re.IGNORECASE)
        if not head.startswith(b"HTTP/1.1 200") or found is None:
            raise RuntimeError(f"the server answers {head[:200]!r}")
        return await self._reader.readexactly(int(found[1]))

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


def over_http(address: str, model: str, files: Sequence[bytes]) -> Contender:
    """Return the contender that is a server over HTTP."""
    host, port = address.rsplit(":", 1)
    header = (
        '{"inputs":[{"name":"files","datatype":"BYTES","shape":[1,1],"parameters":{"binary_data_size":%d}}],'
        '"outputs":[{"name":"' + OUTPUT + '","parameters":{"binary_data":true}}]}'
    )
    requests = []
    for file in files:
        told = (header % (len(file) + 4)).encode()
        body = told + len(file).to_bytes(4, "little") + file
        requests.append(
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
            f"Inference-Header-Content-Length: {len(told)}\r\n\r\n".encode()
            + body
        )

    async def connect() -> Ask:
        return HttpClient(*await asyncio.open_connection(host, int(port)), requests)

    return Contender(connect)


def over_grpc(address: str, model: str, files: Sequence[bytes]) -> Contender:
    """Return the contender that is a server over gRPC."""
    requests = []
    for file in files:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="files", datatype="BYTES", shape=[1, 1])
        request.outputs.add(name=OUTPUT)
        request.raw_input_contents.append(len(file).to_bytes(4, "little") + file)
        requests.append(request)
    channels: dict[asyncio.AbstractEventLoop, Any] = {}

    async def connect() -> Ask:
        channel = channels.setdefault(asyncio.get_running_loop(), grpc.aio.insecure_channel(address))
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return lambda number: stub.ModelInfer(requests[number % len(requests)])

    return Contender(connect)


def in_process(classifier: Classifier, files: Sequence[bytes]) -> Contender:
    """Return the contender that is the classifier in this process."""

    async def connect() -> Ask:
        return lambda number: classifier.answers_async([files[number % len(files)]])

    return Contender(connect)


async def compare(contenders: dict[str, Contender], clients: int, blocks: int, seconds: float) -> None:
    """Let contenders take turns."""
    for contender in contenders.values():
        await contender.block(clients, seconds / 2)
        contender.rates.clear()
        contender.seconds.clear()
    for _ in range(blocks):
        for name in random.sample(sorted(contenders), len(contenders)):
            await contenders[name].block(clients, seconds)


def interval(logarithms: Sequence[float]) -> str:
    """Return the mean ratio with its 95% interval."""
    values = np.array(logarithms)
    spread = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return f"{np.exp(mean):.2f} ({np.exp(mean - spread):.2f} to {np.exp(mean + spread):.2f})"


def table(contenders: dict[str, Contender], clients: int) -> str:
    """Return what was measured, as a table of Markdown."""
    base = contenders[IN_PROCESS]
    lines = [
        f"| {clients} clients | images/s | beside {IN_PROCESS} | p50 ms | p99 ms | p50 beside HTTP |",
        "|---|---|---|---|---|---|",
    ]
    medians = {name: [float(np.median(block)) for block in one.seconds] for name, one in contenders.items()}
    for name, one in contenders.items():
        every = np.concatenate(one.seconds)
        rates = [float(np.log(rate / other)) for rate, other in zip(one.rates, base.rates, strict=True)]
        slower = [float(np.log(ours / http)) for ours, http in zip(medians[name], medians["HTTP"], strict=True)]
        lines.append(
            f"| {name} | {np.mean(one.rates):.0f} | {'1' if one is base else interval(rates)} | "
            f"{1000 * np.percentile(every, 50):.2f} | {1000 * np.percentile(every, 99):.2f} | "
            f"{'1' if name == 'HTTP' else interval(slower)} |"
        )
    return "\n".join(lines)


async def start(bundle: Path, threads: int) -> tuple[asyncio.subprocess.Process, str, str]:
    """Start the server, and return its process and where it listens for HTTP and gRPC."""
    options = ["--device", "cpu", "--threads", str(threads), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tnn_runtime", "serve", f"model={bundle}", *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    found: dict[str, str] = {}
    while "grpc" not in found:
        line = (await process.stdout.readline()).decode()
        if not line:
            raise RuntimeError("the server did not start; what it said is above")
        if match := re.match("(http|grpc)://([^ ]+)", line.strip()):
            found[match[1]] = match[2]
    return process, found["http"], found["grpc"]


def command(words: Sequence[str]) -> None:
    """Run the example."""
    options = parse(words)
    files = [path.read_bytes() for path in sorted(options.images.iterdir()) if path.is_file()][: options.files]
    print(machine(), flush=True)
    with Classifier.load(options.bundle, "cpu", threads=options.threads) as classifier:
        asyncio.run(measure(options, classifier, files))


async def measure(options: argparse.Namespace, classifier: Classifier, files: list[bytes]) -> None:
    """Start the server, measure, and end it."""
    process, http, over = await start(options.bundle, options.threads)
    try:
        for clients in options.clients:
            contenders = {
                IN_PROCESS: in_process(classifier, files),
                "HTTP": over_http(http, "model", files),
                CONTROL: over_http(http, "model", files),
                "gRPC": over_grpc(over, "model", files),
            }
            for text in options.server:
                name, _, places = text.partition("=")
                its_http, its_grpc, model = places.split(",")
                contenders[f"{name}, HTTP"] = over_http(its_http, model, files)
                contenders[f"{name}, gRPC"] = over_grpc(its_grpc, model, files)
            await compare(contenders, clients, options.blocks, options.seconds)
            print(f"\n{table(contenders, clients)}", flush=True)
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = Parser("benchmark_server.py", __doc__ or "")
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="folder of image files to send")
    parser.add_argument("--files", type=positive_int, default=64, metavar="N", help="how many of them to send")
    parser.add_argument(
        "--clients", type=positive_int, nargs="+", default=[1, 16], metavar="N", help="at the same time"
    )
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="CPU threads of the model")
    parser.add_argument("--blocks", type=positive_int, default=10, metavar="N", help="turns of each")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="how long a turn is")
    parser.add_argument("--server", action="append", default=[], metavar="NAME=HTTP,GRPC,MODEL", help="another server")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(run("benchmark_server.py", command))
