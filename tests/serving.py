"""The service of the examples without a network: its application, and a client of it, on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpx


class Client:
    """Sends requests to an ASGI application and waits for the answers."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Return the answer; an exception of the application is raised here."""
        return self._runner.run(self._client.request(method, url, **options))

    def get(self, url: str) -> httpx.Response:
        """Return what is there."""
        return self.request("GET", url)

    def post(self, url: str, **options: Any) -> httpx.Response:
        """Return the answer to a body."""
        return self.request("POST", url, **options)

    def close(self) -> None:
        """End the connections."""
        self._runner.run(self._client.aclose())


@contextmanager
def running(service: ModuleType) -> Iterator[Client]:
    """Yield a client of the service between its start and its end."""
    with asyncio.Runner() as runner:
        lifespan = service.lifespan(service.app)
        runner.run(lifespan.__aenter__())
        client = Client(service.app, runner)
        try:
            yield client
        finally:
            client.close()
            runner.run(lifespan.__aexit__(None, None, None))
