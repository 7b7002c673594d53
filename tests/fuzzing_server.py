"""Requests to the server that are damaged in every way we could think of, and a judge of what becomes of them.

``python tests/fuzzing_server.py http 0 20000`` and ``python tests/fuzzing_server.py grpc 0 20000`` print a line before
and after each, so that what dies or hangs is known by its number, which decides all of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import gzip
import json
import math
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from fuzzing import SECONDS, main, make_seeds, mutate
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from mutations import BYTES, NAMES, VALUES, Random, pick, places
from tritonclient.grpc import service_pb2

from tnn_runtime import Deployment
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.grpc import GrpcApi, Servicer
from tnn_runtime.server.http import http_app
from tnn_runtime.server.listeners import grpc_server
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.options import HttpOptions, ServeOptions
from tnn_runtime.server.outputs import OUTPUTS

FIXTURES = Path(__file__).parent / "fixtures"
MOST = 1 << 16
TOKEN = "a-b.c"
HEADER_LENGTH = "inference-header-content-length"


def words(text: str | bytes) -> list[Any]:
    """Return what has spaces between it, in fewer lines than lists take."""
    return text.split()


WORDS = [*OUTPUTS, *words("images files UINT8 BYTES FP32 p 1 2 3 id classification binary_data priority")]
WORDS += [*words("binary_data_size binary_data_output top_k timeout"), "", "\n", "ü", "a" * 5000]
NUMBERS: list[Any] = [*range(6), 8, 64, 192, 255, 256, 300, -1, 1.5, 1e400]
NUMBERS += [1 << 20, 1 << 31, (1 << 31) - 1, 1 << 62]
STRANGE: list[Any] = [*VALUES, *NAMES, *WORDS, *NUMBERS, [1, 8, 8, 3], [2], [2, 1], [-1, 8, 8, 3], [0], [1 << 31] * 4]

METHODS = [*words("GET HEAD PUT DELETE OPTIONS PATCH TRACE post BREW"), "", "\0"]
PATHS = [*words("/ * //predict /predict/ /predict/../metrics /v2/ /v3 /v2/models /v2/models/ /v2/models//infer")]
PATHS += [*words("/v2/models/q/infer /v2/models/p/versions/0 /v2/models/p/versions/1/infer/ /предикт"), "", "/\0"]
PATHS += ["/v2/repository/models/q/load", "/\ud800", "/" + "a" * 5000, "/v2/models/p/versions/" + "9" * 5000]
GETS = [*words("/ /metrics /v2 /v2/health/live /v2/health/ready /v2/models/stats /v2/models/p /v2/models/p/ready")]
GETS += [f"/v2/models/p/{rest}" for rest in words("config stats versions/2 versions/1/stats versions/1/ready")]
POSTS = ["/v2/repository/index", "/v2/repository/models/p/load", "/v2/repository/models/p/unload"]
INFER = ["/v2/models/p/infer", "/v2/models/p/versions/1/infer", "/v2/models/p/versions/2/infer"]
QUERIES = [*words(b"top_k=0 top_k=-5 top_k=1e9 top_k= top_k=1&top_k=2 top_k=2.0 explain=1 explain=maybe top_k[]=1")]
QUERIES += [*words(b"explain=true&top_k=1001 top_k=%00 top_k=%ff%fe % &&&&= model=q model=p&version=3 reject=1")]
QUERIES += [*words(b"version=%ED%A0%80 against=dog against=fox name=%3Cscript%3E explain=true&reject=true")]
QUERIES += [b"", b"\xff\xfe=\x00", b"a=1&" * 5000, b"top_k=" + b"9" * 5000, b"name=" + b"%f0%9f%98%80" * 500]
HEADERS = [
    *words(b"content-type accept expect transfer-encoding cookie host origin range content-length x-forwarded-for"),
    b"",
]
HEADERS += [*words(b"content-encoding accept-encoding authorization inference-header-content-length")]
HEADER_VALUES = [*words(b"0 -1 -5 abc 1e9 1 00 image/png multipart/ application/json gzip deflate x-gzip br identity")]
HEADER_VALUES += [*words(b"gzip;q=0 [ a:b 100-continue ;;= Bearer"), b"", b"\xb2", b"\0", b"\xff\xfe", b"GZIP "]
HEADER_VALUES += [b"9" * 40, b"9" * 5000, b"a" * 10_000, b"gzip, deflate", b"bearer \xe9", b"Bearer " + TOKEN.encode()]
HEADER_VALUES += [b"multipart/form-data; boundary=x", b"text/html; charset=x"]
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 503}
GONE = 499
CODES = {"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Let values be deeper than the library reads them."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def often(random: Random, share: float) -> bool:
    return bool(random.random() < share)


def served() -> Models:
    folders = {1: FIXTURES / "bundle-v5", 2: FIXTURES / "bundle-v2"}
    return Models(Model("p", version, Deployment(folder, "cpu", threads=1)) for version, folder in folders.items())


def close(models: Models) -> None:
    for model in models:
        model.deployment.close()


@dataclass
class Asked:
    """A request over HTTP: sound until something is done to it."""

    method: str = "POST"
    path: str = "/predict"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    told: Any = None


def some_pixels(random: Random) -> np.ndarray[Any, Any]:
    sides = (8, 8) if often(random, 0.5) else random.integers(1, 12, 2).tolist()
    return random.integers(0, 256, (int(random.integers(1, 4)), *sides, int(pick(random, [1, 3, 3]))), np.uint8)


def framed(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def some_request(random: Random, files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return a sound request for inference as JSON has it, and the binary data after it."""
    binary = often(random, 0.5)
    pixels, chosen = some_pixels(random), [pick(random, files) for _ in range(int(random.integers(1, 3)))]
    raw: bytes
    given: dict[str, Any]
    if often(random, 0.5):
        given = {"name": "images", "datatype": "UINT8", "shape": list(pixels.shape)}
        raw, data = pixels.tobytes(), pick(random, [pixels.tolist(), pixels.ravel().tolist()])
    else:
        given = {"name": "files", "datatype": "BYTES", "shape": pick(random, [[len(chosen)], [len(chosen), 1]])}
        raw, data = framed(chosen), [base64.b64encode(file).decode() for file in chosen]
    given |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": data}
    told: dict[str, Any] = {"inputs": [given]}
    if often(random, 0.5):
        told["id"] = pick(random, ["", "7", "ü", "a\nb", "\ud800", "x" * 5000])
    if often(random, 0.7):
        names = random.permutation(list(OUTPUTS))[: int(random.integers(0, 4))].tolist()
        told["outputs"] = [{"name": name} for name in names]
        for one in told["outputs"]:
            if often(random, 0.5):
                one["parameters"] = {"binary_data": often(random, 0.5)}
            if one["name"] in ("logits", "probabilities") and often(random, 0.3):
                one.setdefault("parameters", {})["classification"] = int(random.integers(0, 4))
    if often(random, 0.3):
        parameters = [{"top_k": 1}, {"timeout": 10**8}, {"timeout": 1}, {"binary_data_output": True}]
        told["parameters"] = pick(random, parameters)
    return told, raw if binary else b""


def edit_tree(tree: Any, random: Random) -> Any:
    """Change a value as JSON has them: exchange, leave out, rename, double, or nest what it has."""
    tree = copy.deepcopy(tree)
    for _ in range(int(pick(random, [1, 1, 2, 4]))):
        found = places(tree)
        if not found:
            return pick(random, STRANGE)
        # Most places are pixels; those that are not come first.
        container, key = pick(random, found[:40] if often(random, 0.7) else found)
        way = int(random.integers(7))
        if way < 3:
            container[key] = copy.deepcopy(pick(random, STRANGE))
        elif way == 3:
            del container[key]
        elif way == 4 and isinstance(container, dict):
            container[pick(random, [*WORDS, *NAMES])] = container.pop(key)
        elif way == 5 and isinstance(container, list):
            container[key:key] = [copy.deepcopy(container[key])] * int(pick(random, [1, 2, 100]))
        else:
            other, place = pick(random, found)
            with contextlib.suppress(LookupError):
                container[key] = copy.deepcopy(other[place])
    return tree


def edit_text(text: bytes, random: Random) -> bytes:
    """Change JSON and not what it says."""
    way = int(random.integers(6))
    if way == 0:
        return pick(random, BYTES)(text, random)
    if way == 1:
        return text.replace(b": ", pick(random, [b":", b": NaN, ", b": -Infinity", b":: ", b": " + b"9" * 5000]), 1)
    if way == 2:
        return pick(random, [b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text + b"\0", b" " * 99 + text])
    if way == 3:
        return b"[" * 50_000
    if way == 4:
        return b'{"a":' * 9_000
    return text.replace(b'"id"', b'"\\ud800\\u0000"').replace(b"1", pick(random, [b"1e400", b"0x1", b"+1", b"1.0"]), 1)


def some_asked(random: Random, images: dict[str, list[bytes]]) -> Asked:
    """Return a request, whose parts are sound as often as not, so that what is wrong with others comes to light."""
    files = [file for kind in ("jpeg", "png") for file in images[kind]]
    file = mutate(images, random) if often(random, 0.3) else pick(random, files)
    kind = int(random.integers(10))
    if kind < 5:
        told, binary = some_request(random, files)
        if often(random, 0.4):
            told = edit_tree(told, random)
        head = json.dumps(told).encode()
        asked = Asked(path=pick(random, INFER), told=told)
        if often(random, 0.1):
            head, asked.told = edit_text(head, random), None
        if binary and often(random, 0.2):
            binary = pick(random, [binary[:-1], binary[1:], binary + b"\0", pick(random, BYTES)(binary, random)])
        asked.body = head + binary
        wrong = [0, 1, len(head) - 1, len(head) + 1, len(asked.body)]
        length = len(head) if often(random, 0.9) else pick(random, wrong)
        if binary or often(random, 0.2):
            asked.headers.append((HEADER_LENGTH.encode(), str(length).encode()))
        if length != len(head):
            asked.told = None
    elif kind == 5:
        asked = Asked(path=pick(random, INFER), headers=[(HEADER_LENGTH.encode(), b"0")], body=file)
    elif kind < 8:
        asked = Asked(path=pick(random, ["/predict", "/predict", "/explain"]), body=file)
        asked.query = pick(random, [b"", b"top_k=1", b"explain=true", b"version=1", *QUERIES])
    elif kind == 8:
        asked = Asked("GET", pick(random, GETS))
    else:
        bodies = [b"", b"{}", b'{"ready": true}', b'{"ready": 1}', file]
        asked = Asked(path=pick(random, POSTS), body=pick(random, bodies))
    spoil(asked, random)
    return asked


def spoil(asked: Asked, random: Random) -> None:
    """Compress a request, and damage what is around its body."""
    if often(random, 0.2):
        ways = [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"x-gzip", gzip.compress)]
        name, compress = pick(random, ways)
        asked.body = compress(asked.body)
        asked.headers.append((b"content-encoding", name if often(random, 0.9) else pick(random, HEADER_VALUES)))
        if often(random, 0.3):
            asked.body, asked.told = pick(random, BYTES)(asked.body or b"x", random), None
    elif often(random, 0.03):
        asked.body, asked.told = gzip.compress(bytes(1 << 20)), None
        asked.headers.append((b"content-encoding", b"gzip"))
    elif often(random, 0.02):
        asked.body, asked.told = bytes(2 * MOST), None
    if often(random, 0.2):
        count = int(random.integers(1, 4))
        asked.headers += [(pick(random, HEADERS), pick(random, HEADER_VALUES)) for _ in range(count)]
        random.shuffle(asked.headers)
        asked.told = None
    if often(random, 0.05):
        asked.query = pick(random, QUERIES)
    if often(random, 0.05):
        asked.method = pick(random, METHODS)
    if often(random, 0.05):
        asked.path, asked.told = pick(random, [*PATHS, *GETS, *POSTS, *INFER]), None


class Http:
    """Gives the application over HTTP the request of a number, as a server would hand it over."""

    def __init__(self, folder: Path) -> None:
        self._models = served()
        self._images = make_seeds()
        self._runner = asyncio.Runner()
        self._open = http_app(self._models, HttpOptions(MOST))
        self._closed = http_app(self._models, HttpOptions(MOST, token=TOKEN))
        self._hasty = http_app(self._models, HttpOptions(MOST, body_timeout_s=0.001))

    def judge(self, number: int) -> str:
        return self._runner.run(self._send(np.random.default_rng(number)))

    def close(self) -> None:
        self._runner.close()
        close(self._models)

    async def _send(self, random: Random) -> str:
        with deep():
            asked = some_asked(random, self._images)
        size = int(random.integers(1, max(2, len(asked.body) + 1)))
        pieces = [asked.body[start : start + size] for start in range(0, len(asked.body), size)]
        pieces = [*pieces[:50], b"".join(pieces[50:])]
        last: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
        app, stalls = self._open, False
        if often(random, 0.05):
            last = {"type": "http.disconnect"}
        elif often(random, 0.05):
            app = self._closed
        elif often(random, 0.01):
            app, stalls = self._hasty, True
        coming, sent = deque([*({"type": "http.request", "body": one, "more_body": True} for one in pieces), last]), []
        answered = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": asked.method,
            "path": asked.path,
            "raw_path": asked.path.encode(errors="replace"),
            "root_path": "",
            "query_string": asked.query,
            "headers": asked.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

        async def receive() -> Any:
            if not coming or stalls:
                await answered.wait()  # as a client that waits for the answer
                return {"type": "http.disconnect"}
            return coming.popleft()

        async def send(event: Any) -> None:
            sent.append(event)

        where = f"{asked.method} {asked.path[:60]!r} {asked.query[:60]!r} {asked.headers!r:.200} {asked.body[:200]!r}"
        try:
            async with asyncio.timeout(SECONDS):
                await app(scope, receive, send)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]} for {where}"
        wrong = self._wrong(asked, sent, left=last["type"] == "http.disconnect")
        return f"{wrong} for {where}" if wrong else "answered" if sent[0]["status"] < 400 else "refused"

    def _wrong(self, asked: Asked, sent: list[Any], left: bool) -> str:
        """Return what is wrong with an answer."""
        status = sent[0]["status"] if sent else None
        if status not in STATUSES and not (left and status == GONE):
            return f"status {status}"
        headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        body = b"".join(event.get("body", b"") for event in sent[1:])
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if asked.method == "HEAD" or status == GONE:
            return ""
        if status >= 400:
            told = json.loads(body)["error"]
            return "" if set(json.loads(body)) == {"error"} and is_line(told) else f"the error {told!r:.100}"
        if asked.told is None or asked.method != "POST":
            return ""
        length = headers.get(HEADER_LENGTH)
        answer = json.loads(body if length is None else body[: int(length)])
        binary = 0 if length is None else len(body) - int(length)
        shapes = {one["name"]: one["shape"] for one in answer["outputs"]}
        for one in answer["outputs"]:
            if "data" in one and len(one["data"]) != math.prod(one["shape"]):
                return f"{one['name']} with {len(one['data'])} values"
            binary -= one.get("parameters", {}).get("binary_data_size", 0)
        (given,) = asked.told["inputs"]
        return differing(
            (answer.get("id"), asked.told.get("id")),
            (binary, 0),
            ([one["name"] for one in asked.told.get("outputs", [])] or list(shapes), list(shapes)),
            ({shape[0] for shape in shapes.values()}, {given["shape"][0]}),
        )


def is_line(text: str) -> bool:
    return bool(text) and len(text) < 4000 and "\n" not in text


def differing(*pairs: tuple[Any, Any]) -> str:
    return "; ".join(f"{found!r:.100} and not {expected!r:.100}" for found, expected in pairs if found != expected)


SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
REQUESTS = {method.name: GetMessageClass(method.input_type) for method in SERVICE.methods}
RARE = [name for name in REQUESTS if "SharedMemory" in name or name in ("TraceSetting", "LogSettings")]
OFTEN = [name for name in REQUESTS if name not in RARE]
PLAIN: dict[str, list[Any]] = {
    "bool": [True, False],
    "int": [0, 1, 2, 3, 8, 255, 256, 1 << 20, -1, -(1 << 31), (1 << 31) - 1],
    "long": [1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1],
    "float": [0.0, 1.5, -0.0, float("nan"), float("inf"), 1e308, 255.0],
    "str": [*WORDS, *(name for name in NAMES if name.isprintable()), "\0", "a\nb", ""],
    "bytes": [b"", b"\0", b"\xff" * 9, b"\x05\0\0\0", b"\xff\xff\xff\xff"],
}


def plain(kind: int, random: Random) -> Any:
    """Return a value for a field of a type."""
    names = {Field.TYPE_BOOL: "bool", Field.TYPE_STRING: "str", Field.TYPE_BYTES: "bytes"}
    names |= dict.fromkeys([Field.TYPE_FLOAT, Field.TYPE_DOUBLE], "float")
    name = names.get(kind, "int")
    values = PLAIN[name]
    if kind in (Field.TYPE_INT64, Field.TYPE_UINT64):
        values = [*values, *PLAIN["long"]]
    if kind in (Field.TYPE_UINT32, Field.TYPE_UINT64):
        values = [value for value in values if value >= 0]
    return pick(random, values)


def edit_message(message: Message, random: Random) -> None:
    """Change a field of a message, or of one in it."""
    one = pick(random, message.DESCRIPTOR.fields or [None])
    if one is None:
        return
    value = getattr(message, one.name)
    if one.message_type is not None and one.message_type.GetOptions().map_entry:
        key = pick(random, WORDS)
        if one.message_type.fields_by_name["value"].message_type is not None:
            edit_message(value[key], random)
        return
    if one.is_repeated:
        way = int(random.integers(4))
        if way == 0 and value:
            del value[int(random.integers(len(value)))]
        elif way == 1:
            value.extend(list(value) * int(pick(random, [1, 1, 50])))
        elif one.message_type is not None:
            edit_message(pick(random, value) if value and way == 2 else value.add(), random)
        elif value and way == 2:
            value[int(random.integers(len(value)))] = plain(one.type, random)
        else:
            value.append(plain(one.type, random))
    elif one.message_type is not None:
        edit_message(value, random)
    elif often(random, 0.2):
        message.ClearField(one.name)
    else:
        setattr(message, one.name, plain(one.type, random))


def some_infer(random: Random, files: list[bytes]) -> Any:
    """Return a sound message for inference."""
    request = service_pb2.ModelInferRequest(model_name="p", model_version=pick(random, ["", "1", "2"]))
    request.id = pick(random, ["", "7", "ü", "x" * 5000])
    pixels, chosen = some_pixels(random), [pick(random, files) for _ in range(int(random.integers(1, 3)))]
    raw, is_pixels = often(random, 0.5), often(random, 0.5)
    if is_pixels:
        given = request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
        if not raw:
            given.contents.uint_contents.extend(pixels.ravel().tolist())
    else:
        given = request.inputs.add(name="files", datatype="BYTES", shape=[len(chosen)])
        if not raw:
            given.contents.bytes_contents.extend(chosen)
    if raw:
        request.raw_input_contents.append(pixels.tobytes() if is_pixels else framed(chosen))
    for name in random.permutation(list(OUTPUTS))[: int(random.integers(0, 4))].tolist():
        request.outputs.add(name=name)
    if often(random, 0.3):
        request.parameters[pick(random, ["top_k", "timeout"])].int64_param = int(pick(random, [1, 2, 10**8]))
    return request


class Grpc:
    """Sends a server the message of a number, over the loopback."""

    def __init__(self, folder: Path) -> None:
        self._models = served()
        images = make_seeds()
        self._files = [file for kind in ("jpeg", "png") for file in images[kind]]
        self._runner = asyncio.Runner()
        self._runner.run(self._start())

    async def _start(self) -> None:
        options = ServeOptions(HttpOptions(MOST))
        self._server, port = grpc_server(Servicer(GrpcApi(self._models)), Address("127.0.0.1", 0), options)
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)])

    def judge(self, number: int) -> str:
        return self._runner.run(self._send(np.random.default_rng(number)))

    def close(self) -> None:
        async def end() -> None:
            await self._channel.close()
            await self._server.stop(None)

        self._runner.run(end())
        self._runner.close()
        close(self._models)

    async def _send(self, random: Random) -> str:
        name = "ModelInfer" if often(random, 0.7) else pick(random, OFTEN if often(random, 0.9) else RARE)
        is_infer = REQUESTS[name] is service_pb2.ModelInferRequest
        messages = [self._message(name, random) for _ in range(int(random.integers(3)) if "Stream" in name else 1)]
        sent = [message.SerializeToString() for message in messages]
        if often(random, 0.1):
            sent = [pick(random, BYTES)(content or b"x", random) for content in sent]
            messages = []
        path = f"/{SERVICE.full_name}/{name}"
        where = f"{name} {b' '.join(sent)[:300]!r}"
        try:
            async with asyncio.timeout(SECONDS):
                if "Stream" in name:
                    found = [one async for one in self._channel.stream_stream(path)(iter(sent))]
                    answers = [service_pb2.ModelStreamInferResponse.FromString(one) for one in found]
                    ids = [one.infer_response.id for one in answers]
                    wrong = differing((ids, [message.id for message in messages])) if messages else ""
                    return f"{wrong} for {where}" if wrong else "answered"
                found = await self._channel.unary_unary(path)(sent[0])
        except grpc.aio.AioRpcError as error:
            if error.code().name in CODES and is_line(error.details()) and "Unexpected" not in error.details():
                return "refused"
            return f"{error.code().name} {error.details()!r:.300} for {where}"
        except TimeoutError:
            return f"no answer for {where}"
        wrong = self._wrong(messages[0], found) if is_infer and messages else ""
        return f"{wrong} for {where}" if wrong else "answered"

    def _message(self, name: str, random: Random) -> Any:
        if REQUESTS[name] is service_pb2.ModelInferRequest:
            message = some_infer(random, self._files)
            edits = int(pick(random, [0, 0, 1, 1, 2, 5]))
        else:
            message, edits = REQUESTS[name](), int(random.integers(4))
            for known in ("name", "model_name"):
                if known in message.DESCRIPTOR.fields_by_name and often(random, 0.8):
                    setattr(message, known, "p")
        for _ in range(edits):
            edit_message(message, random)
        return message

    def _wrong(self, asked: Any, content: bytes) -> str:
        """Return what is wrong with an answer."""
        answer = service_pb2.ModelInferResponse.FromString(content)
        names = [one.name for one in answer.outputs]
        sizes = {"FP32": 4, "BOOL": 1}
        pairs = [
            (answer.id, asked.id),
            ([one.name for one in asked.outputs] or names, names),
            ({one.shape[0] for one in answer.outputs}, {asked.inputs[0].shape[0]}),
            *(
                (len(raw), sizes[one.datatype] * math.prod(one.shape))
                for one, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
                if one.datatype in sizes
            ),
        ]
        return differing(*pairs)


KINDS: dict[str, Callable[[Path], Any]] = {"http": Http, "grpc": Grpc}

if __name__ == "__main__":
    main(KINDS, *sys.argv[1:])
