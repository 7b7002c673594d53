"""What all endpoints over HTTP share: plain answers in JSON, and one answer for each error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tnn_runtime.errors import TnnError
from tnn_runtime.server.statuses import RequestTimeout, WrongToken, client_error, message_of, status_of
from tnn_runtime.server.tokens import check_token

__all__ = ["RETRY_AFTER_S", "Endpoint", "header", "json_response", "refuse_path", "route", "unless_gone"]

RETRY_AFTER_S = "1"
_GONE = 499

T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def header(request: Request, name: str) -> str | None:
    """Return what a request has as a header, all of it if it has several of the name; ``None`` for nothing."""
    return ", ".join(request.headers.getlist(name)) or None


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with values as JSON, in ASCII, so that every text can be told."""
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def route(path: str, endpoint: Endpoint, methods: Iterable[str] = ("GET",), token: str | None = None) -> Route:
    """Return a route whose errors are answered as the protocol has them: ``{"error": "..."}``.

    Args:
        path: Where it is.
        endpoint: What answers.
        methods: The methods of HTTP that it has.
        token: What requests must carry; ``None`` if everybody may ask.
    """

    async def answer(request: Request) -> Response:
        try:
            check_token(token, request.headers.get("authorization"))
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:
            return _refusal(client_error(error, _asked(request)))

    return Route(path, answer, methods=list(methods))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what work gives, and cancel it if the client goes away before; the body has to be read already.

    Raises:
        ClientDisconnect: If it went away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def refuse_path(request: Request, error: Exception) -> Response:
    """Answer a request for what is not there."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    expected = f"expected {headers['Allow']}" if "Allow" in headers else "GET /v2 tells what this server is"
    return json_response({"error": f"{_asked(request)}: {error.detail}; {expected}"}, error.status_code, headers)


def _asked(request: Request) -> str:
    """Return the method and the path; the URL of a request cannot be had if it holds bytes that are no text."""
    return message_of(f"{request.method} {request.scope['path']}")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(error: TnnError) -> Response:
    status = status_of(error).http
    headers = {}
    if status == 503:
        headers["Retry-After"] = RETRY_AFTER_S
    if isinstance(error, WrongToken):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"
    return json_response({"error": message_of(error)}, status, headers)
