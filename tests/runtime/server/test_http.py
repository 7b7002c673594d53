"""The application over HTTP, in this process: the bounds of bodies, errors, and clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from waiting import FOREVER

from tnn_runtime import Classifier, ClassifierClosed, DeadlineExceeded, Deployment, QueueFull, RunError
from tnn_runtime.server import protocol
from tnn_runtime.server.http import http_app
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.options import HttpOptions
from tnn_runtime.server.requests import parse_request
from tnn_runtime.server.threads import LARGE

PREDICT, INFER = "/predict", "/v2/models/p/infer"
MOST = 2000


def asked(
    models: Models, ask: Callable[[httpx.AsyncClient], Awaitable[Any]], options: HttpOptions | None = None
) -> Any:
    """Return what a client gets that asks the application."""

    async def main() -> Any:
        transport = httpx.ASGITransport(http_app(models, options or HttpOptions(MOST)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=FOREVER) as client:
            return await ask(client)

    return asyncio.run(main())


@pytest.mark.parametrize("path", [PREDICT, INFER, "/explain", "/v2/repository/index"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"a" * (MOST + 1), {}, 413, f"the body has {MOST + 1} bytes; expected at most {MOST} bytes"),
        (
            gzip.compress(bytes(100 * MOST), mtime=0),
            {"Content-Encoding": "gzip"},
            413,
            "the uncompressed body is larger",
        ),
        (zlib.compress(bytes(100 * MOST)), {"Content-Encoding": "Deflate"}, 413, "the uncompressed body is larger"),
        (gzip.compress(b"a", mtime=0)[:-1], {"Content-Encoding": "gzip"}, 400, "ends too early"),
        (gzip.compress(b"a", mtime=0) * 2, {"Content-Encoding": "x-gzip"}, 400, "21 bytes follow the compressed body"),
        (b"abc", {"Content-Encoding": "gzip"}, 400, "cannot be uncompressed"),
        (b"", {"Content-Encoding": "deflate"}, 400, "ends too early"),
        (b"a", {"Content-Encoding": "br"}, 415, "the body has the encoding 'br'; expected none, or one of gzip"),
        (b"a", {"Content-Encoding": "gzip, gzip"}, 415, "the encoding 'gzip, gzip'"),
    ],
)
def test_bodies_have_bounds(
    models: Models, path: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    answer = asked(models, lambda client: client.post(path, content=body, headers=headers))
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_no_more_is_read_than_is_allowed(models: Models) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield bytes(MOST // 4)

    answer = asked(models, lambda client: client.post(PREDICT, content=body()))
    assert (answer.status_code, "the body is larger; expected" in answer.json()["error"]) == (413, True)
    assert read < 10


def test_a_body_has_to_come_in_time(models: Models) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(FOREVER)

    answer = asked(models, lambda client: client.post(PREDICT, content=body()), HttpOptions(MOST, body_timeout_s=0.01))
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert "has not come within 0.01 s" in answer.json()["error"]


def test_all_large_bodies_together_have_a_bound(models: Models) -> None:
    size = 2 * LARGE

    async def ask(client: httpx.AsyncClient) -> tuple[list[int], httpx.Response, httpx.Response]:
        enough = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield bytes(size)
            await enough.wait()

        asking = [asyncio.create_task(client.post(PREDICT, content=body())) for _ in range(17)]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        small = await client.post(PREDICT, content=b"a")
        enough.set()
        await asyncio.wait(asking)
        after = await client.post(PREDICT, content=bytes(size))
        assert [one.result().headers["retry-after"] for one in done] == ["1"]
        return sorted(one.result().status_code for one in asking), small, after

    statuses, small, after = asked(models, ask, HttpOptions(size))
    assert statuses == [400] * 16 + [503]
    assert (small.status_code, after.status_code) == (400, 400)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (QueueFull("it is full"), 503, "it is full"),
        (DeadlineExceeded("too late"), 503, "too late"),
        (RunError("it failed"), 503, "it failed"),
        (ClassifierClosed("it drains"), 503, "it drains"),
        (MemoryError(), 503, "no memory left"),
        (ZeroDivisionError("1 / 0"), 500, "the server failed; its log tells why"),
    ],
)
@pytest.mark.parametrize(("path", "headers"), [(PREDICT, {}), (INFER, {"Inference-Header-Content-Length": "0"})])
def test_every_error_has_its_status(
    models: Models,
    path: str,
    headers: dict[str, str],
    error: Exception,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Classifier, "predict_async", fail)
    monkeypatch.setattr(Classifier, "answers_async", fail)
    with caplog.at_level(logging.ERROR):
        answer = asked(models, lambda client: client.post(path, content=b"a", headers=headers))
    assert (answer.status_code, message in answer.json()["error"]) == (status, True)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert ("1 / 0" in caplog.text) == (status == 500)


@pytest.mark.parametrize("path", [PREDICT, INFER, "/explain"])
def test_the_work_for_a_client_that_leaves_is_cancelled(
    models: Models, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Work:
        started, cancelled = asyncio.Event(), False

        async def run(self, *arguments: object, **options: object) -> None:
            self.started.set()
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    async def main() -> Work:
        work = Work()
        monkeypatch.setattr(Deployment, "run_async", work.run)
        app = http_app(models, HttpOptions(MOST))
        messages = [{"type": "http.request", "body": b"a", "more_body": False}]
        headers = [(b"inference-header-content-length", b"0")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await work.started.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            pass

        await app(scope, receive, send)
        return work

    assert asyncio.run(main()).cancelled


def test_names_and_ids_of_any_text_are_told(models: Models) -> None:
    answer = asked(models, lambda client: client.post("/v2/models/%ED%A0%80/infer", content=b"{}"))
    assert answer.status_code == 404
    answer = asked(models, lambda client: client.post(INFER, content=b'{"inputs": [], "id": "\\ud800"}'))
    assert answer.status_code == 400


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000, "0" * 5000])
def test_headers_with_more_digits_than_numbers_have(models: Models, digits: str) -> None:
    length = {"Inference-Header-Content-Length": digits}
    answer = asked(models, lambda client: client.post(INFER, content=b"{}", headers=length))
    assert (answer.status_code, "expected how many of the 2 bytes" in answer.json()["error"]) == (400, True)
    answer = asked(models, lambda client: client.post(INFER, content=b"{}", headers={"Content-Length": digits}))
    assert (answer.status_code, "got no inputs" in answer.text or "inputs is missing" in answer.text) == (400, True)


@pytest.mark.parametrize("path", ["/gone", "/v2/", INFER])
@pytest.mark.parametrize("query", [b"\xff\xfe=\x00", b"a=\xc3", b"\x80"])
def test_queries_that_are_no_text_change_nothing(models: Models, path: str, query: bytes) -> None:
    app = http_app(models)

    async def main() -> httpx.Response:
        async def asking(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "query_string": query}, receive, send)  # clients would change it

        async with httpx.AsyncClient(transport=httpx.ASGITransport(asking), base_url="http://server") as client:
            return await client.get(path)

    answer = asyncio.run(main())
    status, why = (405, "Method Not Allowed; expected POST") if path == INFER else (404, "Not Found; GET /v2 tells")
    assert (answer.status_code, answer.json()["error"].startswith(f"GET {path}: {why}")) == (status, True)


@pytest.mark.parametrize("path", ["/" + "a" * 9000, "/%0Aa%0Db" + "%00" * 9000, "/v2/models/" + "%F0%9F%98%80" * 3000])
def test_errors_are_one_short_line(models: Models, path: str) -> None:
    answer = asked(models, lambda client: client.get(path))
    told = answer.json()["error"]
    assert (answer.status_code, len(told.splitlines()), told.isprintable()) == (404, 1, True)
    assert len(told) < 2500


@pytest.mark.parametrize("second", ["gzip", "identity", "br"])
def test_encodings_in_several_headers_are_several_encodings(models: Models, second: str) -> None:
    headers = [("Content-Encoding", "gzip"), ("Content-Encoding", second)]
    answer = asked(models, lambda client: client.post(PREDICT, content=gzip.compress(b"a", mtime=0), headers=headers))
    assert (answer.status_code, f"the encoding 'gzip, {second}'" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    ("head", "binary"),
    [
        (b'{"inputs": []}', b""),
        (b'{"inputs": []}' + b" " * (1 << 16), b""),
        (
            b'{"inputs": [{"name": "files", "datatype": "BYTES", "shape": [20000], "parameters": '
            b'{"binary_data_size": 80000}}]}',
            bytes(80_000),
        ),
    ],
)
def test_large_bodies_are_not_read_in_the_event_loop(
    models: Models, head: bytes, binary: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def look(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return parse_request(*arguments)

    monkeypatch.setattr(protocol, "parse_request", look)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    asked(models, lambda client: client.post(INFER, content=head + binary, headers=headers), HttpOptions())
    assert [thread is threading.main_thread() for thread in threads] == [len(head + binary) < 1 << 16]


def test_large_answers_are_compressed_for_those_who_take_it(models: Models, deployment: Deployment) -> None:
    size = 400
    shape = [size, *deployment.info["input_shape"]]
    given = {"name": "images", "datatype": "UINT8", "shape": shape, "data": [0] * (size * 8 * 8 * 3)}
    assert len(given["data"]) == shape[0] * shape[1] * shape[2] * shape[3]
    for encoding, expected in (("gzip", "gzip"), ("identity", None)):
        answer = asked(
            models,
            lambda client, encoding=encoding: client.post(
                INFER, json={"inputs": [given]}, headers={"Accept-Encoding": encoding}
            ),
            HttpOptions(),
        )
        assert answer.headers.get("content-encoding") == expected
        assert answer.json()["outputs"][0]["shape"][0] == size


@pytest.mark.parametrize(
    ("origin", "status"), [(None, 200), ("http://server", 200), ("https://elsewhere.example", 403)]
)
def test_pages_of_other_sites_may_not_reload(deployment: Deployment, origin: str | None, status: int) -> None:
    models = Models([Model("p", 1, deployment)], may_load=True)
    headers = {} if origin is None else {"Origin": origin}
    answer = asked(models, lambda client: client.post("/v2/repository/models/p/load", headers=headers))
    assert answer.status_code == status
    models.close()


@pytest.mark.parametrize(("token", "is_told"), [(None, True), ("secret", False)])
def test_who_has_no_token_learns_no_names(models: Models, token: str | None, is_told: bool) -> None:
    answer = asked(models, lambda client: client.get("/v2/models/q/ready"), HttpOptions(token=token))
    assert (answer.status_code, "served are p" in answer.json()["error"]) == (404, is_told)


def test_an_image_that_cannot_be_used_is_numbered(models: Models) -> None:
    given = {"name": "files", "datatype": "BYTES", "shape": [2], "data": ["YQ==", "YQ=="]}
    answer = asked(models, lambda client: client.post(INFER, json={"inputs": [given]}))
    assert (answer.status_code, answer.json()["error"].startswith("images[0]: the image is")) == (400, True)
