"""An application without a network: a client of it, on one event loop."""

from __future__ import annotations

import asyncio
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
