"""The bodies of requests over HTTP, read and uncompressed within bounds."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from tnn_runtime.options import shown
from tnn_runtime.server.budget import Budget, Share
from tnn_runtime.server.requests import byte_count
from tnn_runtime.server.statuses import BadRequest, RequestTimeout, RequestTooLarge, UnsupportedBody
from tnn_runtime.server.threads import LARGE, off_loop
from tnn_runtime.server.web import header

__all__ = ["Bodies"]

_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""How bodies may be compressed, with the ``wbits`` of `zlib`."""

_LARGE_COMPRESSED = LARGE // 16


class Bodies:
    """Reads bodies.

    Args:
        max_bytes: How many bytes a body may have, as it comes and uncompressed. All that are read at the same time may
            have 16 times as many.
        timeout_s: Seconds within which a body must have come.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._budget = Budget(max_bytes)

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request, and yield it uncompressed.

        Raises:
            UnsupportedBody: If it is compressed in a way that is not known here.
            RequestTooLarge: If it is too large; the rest of it is left.
            RequestTimeout: If it does not come in time.
            BadRequest: If it cannot be uncompressed.
            ResourcesExhausted: If too many bodies are held already.
            ClientDisconnect: If the connection is lost.
        """
        encoding = (header(request, "content-encoding") or "identity").strip().lower()
        if encoding not in {"identity", *_ENCODINGS}:
            raise UnsupportedBody(
                f"the body has the encoding {shown(encoding)}; expected none, or one of {', '.join(_ENCODINGS)}"
            )
        declared = byte_count(request.headers.get("content-length", ""))
        if declared is not None and declared > self._max_bytes:
            raise self._too_large(f"the body has {declared} bytes")
        with self._budget.share() as share:
            body = await self._received(request, share)
            if encoding != "identity":
                body = await off_loop(len(body) > _LARGE_COMPRESSED, self._uncompress, body, _ENCODINGS[encoding])
                share.grow(share.held + len(body))
            yield body

    async def _received(self, request: Request, share: Share) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    share.grow(len(body))
                    if len(body) > self._max_bytes:
                        raise self._too_large("the body is larger")
        except TimeoutError:
            raise RequestTimeout(
                f"the body has not come within {self._timeout_s:g} s; send it faster, or make it smaller"
            ) from None
        return bytes(body)

    def _uncompress(self, body: bytes, wbits: int) -> bytes:
        stream = zlib.decompressobj(wbits)
        try:
            whole = stream.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise BadRequest(f"the body cannot be uncompressed ({error}); compress it again") from None
        if len(whole) > self._max_bytes:
            raise self._too_large("the uncompressed body is larger")
        if not stream.eof:
            raise BadRequest("the compressed body ends too early; send all of it")
        if stream.unused_data:
            raise BadRequest(
                f"{len(stream.unused_data)} bytes follow the compressed body; expected one compressed stream"
            )
        return whole

    def _too_large(self, found: str) -> RequestTooLarge:
        return RequestTooLarge(f"{found}; expected at most {self._max_bytes} bytes: send fewer or smaller images")
