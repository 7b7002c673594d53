"""The servers of a process: uvicorn for HTTP, and grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator

import grpc
import h11
import uvicorn
from starlette.types import ASGIApp
from tritonclient.grpc import service_pb2_grpc
from uvicorn.protocols.http.h11_impl import H11Protocol

from tnn_runtime.errors import UsageError
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.grpc import Reading, Servicer
from tnn_runtime.server.options import ServeOptions

__all__ = ["grpc_server", "http_server"]

_KEEP_ALIVE_S = 75
"""How long a connection may be idle: longer than clients and proxies keep theirs, so that they are who closes them."""

_ACCEPTED_AT_ONCE = 16
"""asyncio tries to accept so many connections at a time, and logs each failure when there are too many open files."""

_LARGEST_HEAD = 1 << 16
_INVALID = "the request is not valid HTTP/1.1 (its first line, a header or a chunk); this connection is closed"


def http_server(app: ASGIApp, options: ServeOptions) -> uvicorn.Server:
    """Return a server for HTTP, which has to be given a socket.

    Args:
        app: What answers.
        options: How to serve.
    """
    certificate, key = options.tls or (None, None)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # it warns of each client that sends no HTTP
        access_log=False,
        server_header=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(options.drain_s)),
        h11_max_incomplete_event_size=_LARGEST_HEAD,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """A server whose signals are handled by others."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle none: uvicorn would raise those that it got again, and the process would end by them."""
        yield


class _Protocol(H11Protocol):
    """Also closes connections on which nothing has come yet, and refuses what is no HTTP as all other requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if timer is None:
            return
        if is_busy or self.timeout_keep_alive_task is not None:
            timer.cancel()
        else:  # a part of a head, or the rest of a body that was refused, gets no more time
            self.timeout_keep_alive_task = timer

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; if it is the body of a request, the work for that request ends."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        is_begun = self.conn.our_state is h11.SEND_RESPONSE
        if is_begun or self.conn.our_state is h11.IDLE:
            body = json.dumps({"error": _INVALID}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            data = b"" if is_begun and self.scope["method"] == "HEAD" else body
            begin = h11.Response(status_code=400, headers=list(headers.items()))
            for event in (begin, h11.Data(data), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _wait(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)


def grpc_server(
    servicer: Servicer, address: Address | None, options: ServeOptions, *, shared: bool = False
) -> tuple[grpc.aio.Server, int | None]:
    """Return a server for gRPC, and its port; one that listens nowhere if there is no address.

    Args:
        servicer: What answers.
        address: Where to listen.
        options: How to serve.
        shared: Whether other processes listen on the same address.

    Raises:
        UsageError: If it cannot listen.
    """
    server = grpc.aio.server(
        interceptors=[Reading()],
        options=[
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", options.http.max_body_bytes),
            ("grpc.max_send_message_length", -1),
        ],
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    if address is None:
        return server, None
    try:
        if options.tls is None:
            return server, server.add_insecure_port(str(address))
        certificate, key = (path.read_bytes() for path in options.tls)
        return server, server.add_secure_port(str(address), grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError as error:
        raise UsageError(f"cannot listen on {address} for gRPC ({error}); choose another port") from None
