"""The bodies of requests over HTTP, read and uncompressed within bounds."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from tnn_runtime.errors import ResourcesExhausted
from tnn_runtime.options import shown
from tnn_runtime.server.statuses import BadRequest, RequestTimeout, RequestTooLarge, UnsupportedBody

__all__ = ["LARGE", "Bodies"]

LARGE = 1 << 16
"""A body of more bytes is not worked on in the event loop, which others wait for."""

_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""How bodies may be compressed, with the ``wbits`` of `zlib`."""

_LARGE_COMPRESSED = LARGE // 16
_WHOLE = 16
"""How many bodies of the largest size may be held at the same time."""


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
        self._held = 0

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
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"identity", *_ENCODINGS}:
            raise UnsupportedBody(
                f"the body has the encoding {shown(encoding)}; expected none, or one of {', '.join(_ENCODINGS)}"
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large(f"{declared} bytes")
        held: list[int] = []
        try:
            body = await self._received(request, held)
            if encoding != "identity":
                body = await self._uncompressed(body, _ENCODINGS[encoding], held)
            yield body
        finally:
            self._held -= sum(held)

    async def _received(self, request: Request, held: list[int]) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in request.stream():
                    self._hold(len(chunk), held)
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large("more")
        except TimeoutError:
            raise RequestTimeout(
                f"the body has not come within {self._timeout_s:g} s; send it faster, or make it smaller"
            ) from None
        return bytes(body)

    async def _uncompressed(self, body: bytes, wbits: int, held: list[int]) -> bytes:
        if len(body) > _LARGE_COMPRESSED:
            whole = await asyncio.to_thread(self._uncompress, body, wbits)
        else:
            whole = self._uncompress(body, wbits)
        self._hold(len(whole), held)
        return whole

    def _hold(self, size: int, held: list[int]) -> None:
        if self._held + size > _WHOLE * self._max_bytes:
            raise ResourcesExhausted("too many large requests are read at the same time; send it again later")
        self._held += size
        held.append(size)

    def _uncompress(self, body: bytes, wbits: int) -> bytes:
        stream = zlib.decompressobj(wbits)
        try:
            whole = stream.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise BadRequest(f"the body cannot be uncompressed ({error}); compress it again") from None
        if len(whole) > self._max_bytes:
            raise self._too_large("more, uncompressed")
        if not stream.eof:
            raise BadRequest("the compressed body ends too early; send all of it")
        if stream.unused_data:
            raise BadRequest(
                f"{len(stream.unused_data)} bytes follow the compressed body; expected one compressed stream"
            )
        return whole

    def _too_large(self, found: str) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body has {found}; expected at most {self._max_bytes} bytes: send fewer or smaller images"
        )
