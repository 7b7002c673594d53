"""Connections over HTTP that nobody uses are closed, whatever trickles in on them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from waiting import FOREVER

from tnn_runtime.server import listeners
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.http import http_app
from tnn_runtime.server.listeners import http_server
from tnn_runtime.server.models import Models
from tnn_runtime.server.options import HttpOptions, ServeOptions

LIMIT_S = 0.2


def asked(
    models: Models, ask: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], keep_alive_s: float
) -> None:
    """Let a client ask a server on a connection."""

    async def main() -> None:
        with Address("127.0.0.1", 0).bind() as bound, pytest.MonkeyPatch.context() as patch:
            patch.setattr(listeners, "_KEEP_ALIVE_S", keep_alive_s)
            server = http_server(http_app(models, HttpOptions(1000)), ServeOptions())
            serving = asyncio.create_task(server.serve([bound]))
            while not server.started:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            try:
                async with asyncio.timeout(FOREVER):
                    await ask(reader, writer)
            finally:
                writer.close()
                server.should_exit = server.force_exit = True
                await serving

    asyncio.run(main())


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", b""),
        (b"GET /v2", b"a"),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /", b"a"),
        (b"POST /gone HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"a"),
    ],
    ids=["nothing", "a head", "a second head", "the body of what is not there", "a body that is too large"],
)
def test_a_connection_on_which_no_request_comes_is_closed(models: Models, begin: bytes, more: bytes) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        reading = asyncio.create_task(reader.read(-1))
        while not reading.done():
            writer.write(more)
            await asyncio.sleep(LIMIT_S / 10)

    asked(models, trickle, LIMIT_S)


def test_a_connection_that_is_used_lives_on(models: Models) -> None:
    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            for byte in b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"{}"

    asked(models, use, FOREVER)
