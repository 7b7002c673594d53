"""Bytes that are nearly HTTP/1.1, sent to a server that runs; the number of a stream decides all of it.

``python tests/fuzzing_streams.py 127.0.0.1:8000 0 10000`` prints how often the server answered with each status.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter

import numpy as np
from fuzzing import SECONDS, make_seeds
from fuzzing_server import GETS, HEADER_VALUES, HEADERS, INFER, METHODS, PATHS, POSTS, QUERIES, STATUSES, often
from mutations import BYTES, Random, pick

__all__ = ["send_all"]

AT_ONCE = 32
ODD_LINES = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n",
    b"\0",
    b"GET /\r\n",
]
ODD_LINES += [
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET  /  HTTP/1.1\r\n\r\n",
    b"GET http://x/v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\n\n",
]
ODD_HEADERS = [
    b"no colon",
    b": nothing",
    b" folded: x",
    b"a\0b: c",
    b"Host: y",
    b"Connection: close",
    b"Connection: upgrade",
]
ODD_HEADERS += [
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
]
ODD_HEADERS += [
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip",
    b"X: " + b"a" * 70_000,
    b"\xc3\xa9: \xc3\xa9",
]
CHUNKS = [
    b"0\r\n\r\n",
    b"5\r\nab\r\n",
    b"-1\r\n",
    b"fffffffffffffffff\r\n",
    b"xyz\r\n",
    b"3;a=b\r\nabc\r\n",
    b"0\r\nA: b\r\n\r\n",
]


def chunked(body: bytes, random: Random) -> bytes:
    """Return a body in chunks, one of which may be none."""
    size = int(random.integers(1, len(body) + 2))
    pieces = [body[start : start + size] for start in range(0, len(body), size)][:20]
    parts = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    if often(random, 0.4):
        parts.insert(int(random.integers(len(parts))), pick(random, CHUNKS))
    return b"".join(parts)


def some_request(random: Random, files: list[bytes]) -> bytes:
    """Return a request, whose parts are sound as often as not."""
    if often(random, 0.05):
        return pick(random, ODD_LINES)
    method, path = pick(random, [("GET", pick(random, GETS)), ("POST", pick(random, ["/predict", *INFER, *POSTS]))])
    if often(random, 0.1):
        method, path = pick(random, METHODS), pick(random, PATHS)
    version = (
        b"HTTP/1.1" if often(random, 0.9) else pick(random, [b"HTTP/1.0", b"HTTP/2", b"HTTP/1.1 ", b"HTTP/9.9", b""])
    )
    query = b"?" + pick(random, QUERIES) if often(random, 0.1) else b""
    body = pick(random, [b"", b"{}", b'{"inputs": []}', *files]) if method == "POST" or often(random, 0.1) else b""
    headers = [b"Host: x"]
    if "infer" in path and often(random, 0.7):
        headers.append(b"Inference-Header-Content-Length: 0")
    if often(random, 0.3):
        body = chunked(body, random)
        headers.append(b"Transfer-Encoding: chunked")
    elif body:
        headers.append(b"Content-Length: %d" % (len(body) if often(random, 0.9) else pick(random, [0, 1, 10, 10**9])))
    for _ in range(int(pick(random, [0, 0, 0, 1, 2]))):
        headers.append(
            pick(random, [pick(random, ODD_HEADERS), pick(random, HEADERS) + b": " + pick(random, HEADER_VALUES)])
        )
    line = b" ".join([method.encode(), path.encode(errors="replace") + query, version])
    return b"\r\n".join([line, *headers, b"", body])


def stream(number: int, files: list[bytes]) -> bytes:
    """Return what is sent on a connection: some requests, one after another."""
    random = np.random.default_rng(number)
    content = b"".join(some_request(random, files) for _ in range(int(pick(random, [1, 1, 2, 4]))))
    return pick(random, BYTES)(content or b"x", random) if often(random, 0.3) else content


async def _send(address: tuple[str, int], content: bytes, patience: float) -> bytes:
    """Return what comes back: until nothing does for a moment, and after the end of what is sent."""
    reader, writer = await asyncio.open_connection(*address)
    found = bytearray()
    try:
        writer.write(content)
        try:
            while more := await asyncio.wait_for(reader.read(1 << 16), patience):
                found += more
        except TimeoutError:
            writer.write_eof()
        found += await asyncio.wait_for(reader.read(), SECONDS)
    except ConnectionError:
        pass  # the server has closed it: it had read enough
    finally:
        writer.close()
    return bytes(found)


async def send_all(address: str, first: int, last: int, patience: float = 0.02) -> Counter[int]:
    """Send the streams from ``first`` to ``last``, and return how often each status came.

    Raises:
        AssertionError: If an answer is no HTTP, or has a status that is not documented; it names the stream.
    """
    host, port = address.rsplit(":", 1)
    seeds = make_seeds()
    files = [file for kind in ("jpeg", "png") for file in seeds[kind]]
    statuses: Counter[int] = Counter()
    numbers = iter(range(first, last))

    async def work() -> None:
        for number in numbers:
            found = await _send((host, int(port)), stream(number, files), patience)
            assert not found or found.startswith(b"HTTP/1.1 "), (number, found[:200])
            told = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", found)]
            assert set(told) <= {100, *STATUSES}, (number, told)
            statuses.update(told)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return statuses


if __name__ == "__main__":
    print(dict(asyncio.run(send_all(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
