"""One process that serves models until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any

from tnn_runtime.server.addresses import BACKLOG, Address
from tnn_runtime.server.grpc import GrpcApi, Servicer
from tnn_runtime.server.http import http_app
from tnn_runtime.server.listeners import grpc_server, http_server
from tnn_runtime.server.models import Models
from tnn_runtime.server.options import ServeOptions
from tnn_runtime.server.signals import handled

__all__ = ["serve"]

_LOG = logging.getLogger(__name__)

_MOST_FILES = 1 << 16


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
    over_http = http_server(http_app(models, options.http), options)
    servicer = Servicer(GrpcApi(models), options.http.token, options.http.max_body_bytes)
    over_grpc, grpc_port = grpc_server(servicer, grpc_address, options, shared=shared)
    with handled(models) as ending:
        await over_grpc.start()
        serving = asyncio.create_task(over_http.serve([http]))
        while not (over_http.started or serving.done()):
            await asyncio.sleep(0.01)
        if over_http.started:
            http.listen(BACKLOG)  # uvicorn has made it shorter
            is_up(grpc_port)
        await _first(serving, ending.told)
        models.draining = True
        _LOG.info("shutting down: not ready any more; requests are still answered")
        await _first(serving, ending.hurried, timeout_s=options.ready_delay_s)
        _LOG.info("draining: no new requests are taken")
        over_http.should_exit = True
        stopping = asyncio.gather(serving, over_grpc.stop(options.drain_s))
        await _first(stopping, ending.forced)
        over_http.force_exit = ending.forced.is_set()
        if over_http.force_exit:
            await over_grpc.stop(None)
        await stopping
        return not over_http.force_exit


async def _first(task: asyncio.Future[Any], event: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait for a task to be done, an event, or a time to be over."""
    happens = asyncio.ensure_future(event.wait())
    await asyncio.wait((task, happens), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    happens.cancel()


def _allow_many_connections() -> None:
    """Let this process have as many open files as it may, for each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
