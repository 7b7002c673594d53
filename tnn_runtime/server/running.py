"""One process that serves models until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import h11
import uvicorn
from tritonclient.grpc import service_pb2_grpc
from uvicorn.protocols.http.h11_impl import H11Protocol

from tnn_runtime.errors import TnnError, UsageError
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.grpc import GrpcApi, Servicer
from tnn_runtime.server.http import HttpOptions, http_app
from tnn_runtime.server.models import Models

__all__ = ["ServeOptions", "grpc_server", "serve"]

_LOG = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75
"""How long a connection may be idle: longer than clients and proxies keep theirs, so that they are who closes them."""

_BACKLOG = 2048
_MOST_FILES = 1 << 16
_LARGEST_HEAD = 1 << 16


@dataclass(frozen=True)
class ServeOptions:
    """How a process serves.

    Args:
        http: How requests over HTTP are taken; gRPC has the same limit and token.
        ready_delay_s: Seconds for which a server that is told to end says that it is not ready, and takes all requests.
        drain_s: Seconds that requests have after that to be answered, at most.
        tls: The certificate with its chain, and its private key, each a PEM file; ``None`` for no TLS.
    """

    http: HttpOptions = field(default_factory=HttpOptions)
    ready_delay_s: float = 5.0
    drain_s: float = 30.0
    tls: tuple[Path, Path] | None = None


async def serve(
    models: Models,
    http: socket.socket,
    grpc_address: Address | None,
    options: ServeOptions,
    is_up: Callable[[int | None], None],
    *,
    shared: bool = False,
) -> bool:
    """Serve until SIGTERM or SIGINT; then be not ready for a while, take nothing more, and answer what was taken.

    SIGHUP loads all bundles again. SIGINT leaves out the while. One more signal leaves it out, too, and another one
    ends everything at once.

    Args:
        models: What is served.
        http: Where to listen for HTTP: a bound socket.
        grpc_address: Where to listen for gRPC; ``None`` for nowhere.
        options: How to serve.
        is_up: Called when it listens, with the port of gRPC.
        shared: Whether other processes listen on the same addresses.

    Returns:
        Whether it ended in peace.

    Raises:
        UsageError: If it cannot listen.
    """
    _allow_many_connections()
    over_http = _http_server(models, options)
    over_grpc, grpc_port = grpc_server(models, grpc_address, options, shared)
    with _signals(models) as ending:
        await over_grpc.start()
        serving = asyncio.create_task(over_http.serve([http]))
        while not (over_http.started or serving.done()):
            await asyncio.sleep(0.01)
        if over_http.started:
            is_up(grpc_port)
        await _first(serving, ending.told)
        models.draining = True
        _LOG.info("this server ends: it is not ready any more")
        await _first(serving, ending.hurried, timeout_s=options.ready_delay_s)
        _LOG.info("draining")
        over_http.should_exit = True
        stopping = asyncio.gather(serving, over_grpc.stop(options.drain_s))
        await _first(stopping, ending.forced)
        over_http.force_exit = ending.forced.is_set()
        if over_http.force_exit:
            await over_grpc.stop(None)
        await stopping
        return not over_http.force_exit


class _Ending:
    """How soon the end is to be: each signal makes it sooner."""

    def __init__(self) -> None:
        self.told, self.hurried, self.forced = self._stages = [asyncio.Event() for _ in range(3)]

    def advance(self, steps: int) -> None:
        """Go on by some stages."""
        for stage in [stage for stage in self._stages if not stage.is_set()][:steps]:
            stage.set()


async def _first(task: asyncio.Future[Any], event: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait for a task to be done, an event, or a time to be over."""
    happens = asyncio.ensure_future(event.wait())
    await asyncio.wait((task, happens), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    happens.cancel()


@contextlib.contextmanager
def _signals(models: Models) -> Iterator[_Ending]:
    """Handle the signals of this process within; the handlers of before come back."""
    loop, ending = asyncio.get_running_loop(), _Ending()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        _LOG.info("loading all bundles again")
        task = loop.create_task(_reload(models))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[int, tuple[Callable[..., object], tuple[int, ...]]] = {
        signal.SIGTERM: (ending.advance, (1,)),
        signal.SIGINT: (ending.advance, (2,)),
        signal.SIGHUP: (reload, ()),
    }
    before = {number: signal.getsignal(number) for number in handlers}
    for number, (handler, arguments) in handlers.items():
        loop.add_signal_handler(number, handler, *arguments)
    try:
        yield ending
    finally:
        for number, handler_before in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler_before)


async def _reload(models: Models) -> None:
    with contextlib.suppress(TnnError):  # logged there
        await asyncio.to_thread(models.reload)


def _http_server(models: Models, options: ServeOptions) -> uvicorn.Server:
    certificate, key = options.tls or (None, None)
    config = uvicorn.Config(
        http_app(models, options.http),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
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
    models: Models, address: Address | None, options: ServeOptions, shared: bool
) -> tuple[grpc.aio.Server, int | None]:
    """Return a server for gRPC, and its port; one that listens nowhere if there is no address.

    Args:
        models: What is served.
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
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(GrpcApi(models), options.http.token), server)
    if address is None:
        return server, None
    try:
        if options.tls is None:
            return server, server.add_insecure_port(str(address))
        certificate, key = (path.read_bytes() for path in options.tls)
        return server, server.add_secure_port(str(address), grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError as error:
        raise UsageError(f"cannot listen on {address} for gRPC ({error}); choose another port") from None


def _allow_many_connections() -> None:
    """Let this process have as many open files as it may, for each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
