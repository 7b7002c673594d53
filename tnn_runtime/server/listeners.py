"""The servers of a process: uvicorn for HTTP, and grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import grpc
import h11
import uvicorn
from starlette.types import ASGIApp
from tritonclient.grpc import service_pb2_grpc
from uvicorn.protocols.http.h11_impl import H11Protocol

from tnn_runtime.errors import UsageError
from tnn_runtime.server.addresses import BACKLOG, Address
from tnn_runtime.server.grpc import Servicer
from tnn_runtime.server.options import ServeOptions

__all__ = ["grpc_server", "http_server"]

_KEEP_ALIVE_S = 75
"""How long a connection may be idle: longer than clients and proxies keep theirs, so that they are who closes them."""

_LARGEST_HEAD = 1 << 16


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
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
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
    """Closes connections on which nothing comes for a while; uvicorn does so only where something came before."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()

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
        options=[
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", options.http.max_body_bytes),
            ("grpc.max_send_message_length", -1),
        ]
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
