"""Questions to a server of the Open Inference Protocol, good ones and bad ones, with the answers that are expected.

    python tests/probe.py BUNDLE IMAGE --server ours=127.0.0.1:8000,127.0.0.1:8001 --model photos

prints a table with what each server answers. The servers have the bundle, and the inputs ``images`` and ``files``; a
server of others may have two models for them: ``--model photos --images-model photos_network``. Each bad request is
followed by a good one on the same connection.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import http.client
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tnn_runtime import Classifier

HEADER = "Inference-Header-Content-Length"
MIB = 1 << 20
TIMEOUT_S = 300.0


@dataclass(frozen=True, eq=False)
class Known:
    """An image, and what a classifier says of it and of pixels of the size of the model."""

    file: bytes
    label: str
    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, bundle: str | Path, image: str | Path) -> Known:
        """Ask the classifier."""
        with Classifier.load(bundle, "cpu", threads=1) as classifier:
            shape = (2, *classifier.info["input_shape"])
            pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            file = Path(image).read_bytes()
            return cls(file, classifier.predict([file])[0][0].label, pixels, classifier.logits(pixels))


@dataclass(frozen=True)
class Server:
    """Where a server listens, and what it calls its models."""

    http: str
    grpc: str
    model: str
    images_model: str
    metadata: tuple[tuple[str, str], ...] = ()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.http, timeout=TIMEOUT_S)

    def stub(self) -> tuple[grpc.Channel, Any]:
        channel = grpc.insecure_channel(self.grpc, [("grpc.max_send_message_length", -1)])
        return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


Check = Callable[[Server, Known], str]
CHECKS: dict[str, tuple[str, Check]] = {}
"""For each name the answer that is expected, and what asks."""


def check(name: str, expected: str = "as the classifier") -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        assert name not in CHECKS
        CHECKS[name] = (expected, function)
        return function

    return add


def same(known: Known, logits: NDArray[np.float32] | None) -> str:
    """Compare logits with those of the classifier."""
    if logits is None:
        return "no logits"
    difference = float(np.abs(logits - known.logits).max()) if logits.shape == known.logits.shape else np.inf
    return (
        "as the classifier"
        if difference <= 1e-4 * max(1.0, float(np.abs(known.logits).max()))
        else f"differs by {difference:.2g}"
    )


def labelled(known: Known, label: Any) -> str:
    found = label.decode() if isinstance(label, bytes) else label
    return "as the classifier" if found == known.label else f"label {found!r}"


# Good requests over HTTP, by hand.


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPResponse]:
    connection.request("POST", path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    if answer.getheader("Content-Encoding") == "gzip":
        content = gzip.decompress(content)
    return answer.status, content, answer


def as_json(known: Known, **changes: Any) -> dict[str, Any]:
    given = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(known.pixels.shape),
        "data": known.pixels.ravel().tolist(),
    }
    return {"id": "a7", "inputs": [{**given, **changes.pop("input", {})}], "outputs": [{"name": "logits"}], **changes}


def infer_path(server: Server, version: str = "") -> str:
    return f"/v2/models/{server.images_model}{f'/versions/{version}' if version else ''}/infer"


def answered(known: Known, content: bytes) -> str:
    told = json.loads(content)
    if "outputs" not in told:
        return str(told)
    (output,) = told["outputs"]
    return same(known, np.array(output["data"], np.float32).reshape(output["shape"]))


def good(server: Server, known: Known, body: bytes, headers: dict[str, str] | None = None, version: str = "") -> str:
    connection = server.connect()
    status, content, _ = post(connection, infer_path(server, version), body, headers)
    connection.close()
    return answered(known, content) if status == 200 else f"{status} {content[:200]!r}"


@check("JSON in and out")
def _(server: Server, known: Known) -> str:
    return good(server, known, json.dumps(as_json(known)).encode())


@check("JSON, nested lists")
def _(server: Server, known: Known) -> str:
    return good(server, known, json.dumps(as_json(known, input={"data": known.pixels.tolist()})).encode())


@check("the id comes back", "a7")
def _(server: Server, known: Known) -> str:
    connection = server.connect()
    _, content, _ = post(connection, infer_path(server), json.dumps(as_json(known)).encode())
    connection.close()
    return str(json.loads(content).get("id"))


@check("version 1 by its path")
def _(server: Server, known: Known) -> str:
    return good(server, known, json.dumps(as_json(known)).encode(), version="1")


@check("gzip in")
def _(server: Server, known: Known) -> str:
    return good(server, known, gzip.compress(json.dumps(as_json(known)).encode()), {"Content-Encoding": "gzip"})


@check("deflate in")
def _(server: Server, known: Known) -> str:
    return good(server, known, zlib.compress(json.dumps(as_json(known)).encode()), {"Content-Encoding": "deflate"})


@check("gzip out")
def _(server: Server, known: Known) -> str:
    return good(server, known, json.dumps(as_json(known)).encode(), {"Accept-Encoding": "gzip"})


@check("chunks")
def _(server: Server, known: Known) -> str:
    connection = server.connect()
    body = json.dumps(as_json(known)).encode()
    connection.request(
        "POST",
        infer_path(server),
        iter([body[:100], body[100:]]),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answered(known, content) if answer.status == 200 else str(answer.status)


@check("a file as a whole body, label out")
def _(server: Server, known: Known) -> str:
    connection = server.connect()
    status, content, answer = post(connection, f"/v2/models/{server.model}/infer", known.file, {HEADER: "0"})
    connection.close()
    if status != 200:
        return f"{status} {content[:200]!r}"
    length = int(answer.getheader(HEADER) or len(content))
    place = length
    for output in json.loads(content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "labels":
            (first,) = struct.unpack_from("<I", content, place)
            return labelled(known, content[place + 4 : place + 4 + first])
        place += size
    return "no labels"


@check("a file in base64, label out")
def _(server: Server, known: Known) -> str:
    connection = server.connect()
    given = {"name": "files", "datatype": "BYTES", "shape": [1, 1], "data": [base64.b64encode(known.file).decode()]}
    body = json.dumps({"inputs": [given], "outputs": [{"name": "labels"}]}).encode()
    status, content, _ = post(connection, f"/v2/models/{server.model}/infer", body)
    connection.close()
    return labelled(known, json.loads(content)["outputs"][0]["data"][0]) if status == 200 else f"{status}"


# Good requests by the clients of Triton.


def pixel_input(module: Any, known: Known, **options: Any) -> Any:
    given = module.InferInput("images", known.pixels.shape, "UINT8")
    given.set_data_from_numpy(known.pixels, **options)
    return given


def file_input(module: Any, known: Known, count: int = 3) -> Any:
    given = module.InferInput("files", [count, 1], "BYTES")
    given.set_data_from_numpy(np.array([[known.file]] * count, object))
    return given


CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
AIO_CLIENTS = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}


def client(server: Server, name: str, modules: dict[str, Any]) -> Any:
    return modules[name].InferenceServerClient(server.http if name == "http" else server.grpc)


def by_clients(name: str) -> None:
    module, aio = CLIENTS[name], AIO_CLIENTS[name]

    @check(f"tritonclient {name}: pixels in, logits out")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            return same(known, asking.infer(server.images_model, [pixel_input(module, known)]).as_numpy("logits"))

    @check(f"tritonclient {name}: files in, labels out")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            found = asking.infer(server.model, [file_input(module, known)]).as_numpy("labels")
            return labelled(known, found[2][0]) if len(found) == 3 else f"{found.shape}"

    @check(f"tritonclient {name}: id and version come back", "b8, version 1")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            options = {"model_version": "1", "request_id": "b8"}
            found = asking.infer(server.images_model, [pixel_input(module, known)], **options).get_response()
            told = found if isinstance(found, dict) else {"id": found.id, "model_version": found.model_version}
            return f"{told['id']}, version {told['model_version']}"

    @check(f"tritonclient {name}: class_count", "value:index:label")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            wanted = module.InferRequestedOutput("logits", class_count=1)
            (told,) = asking.infer(server.images_model, [pixel_input(module, known)], outputs=[wanted]).as_numpy(
                "logits"
            )[0]
            value, index, label = told.decode().split(":", 2)
            row = known.logits[0]
            is_best = int(index) == int(row.argmax()) and abs(float(value) - row.max()) < 1e-3 and label
            return "value:index:label" if is_best else told.decode()

    @check(f"tritonclient {name}: aio")
    def _(server: Server, known: Known) -> str:
        async def ask() -> Any:
            async with client(server, name, AIO_CLIENTS) as asking:
                inputs = [pixel_input(aio, known)]
                return await asyncio.gather(*(asking.infer(server.images_model, inputs) for _ in range(8)))

        found = {same(known, answer.as_numpy("logits")) for answer in asyncio.run(ask())}
        return ", ".join(sorted(found))

    @check(f"tritonclient {name}: live, ready, metadata, config, statistics, index", "all")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            looks = {
                "live": asking.is_server_live,
                "ready": asking.is_server_ready,
                "model ready": lambda: asking.is_model_ready(server.model),
                "metadata": asking.get_server_metadata,
                "model metadata": lambda: asking.get_model_metadata(server.model),
                "config": lambda: asking.get_model_config(server.model),
                "statistics": lambda: asking.get_inference_statistics(server.model),
                "index": asking.get_model_repository_index,
            }
            missing = []
            for what, look in looks.items():
                try:
                    if not look():
                        missing.append(what)
                except InferenceServerException:
                    missing.append(what)
            return f"not {', '.join(missing)}" if missing else "all"

    @check(f"tritonclient {name}: an unknown model", "404" if name == "http" else "NOT_FOUND")
    def _(server: Server, known: Known) -> str:
        with client(server, name, CLIENTS) as asking:
            try:
                asking.infer("nothing", [pixel_input(module, known)])
            except InferenceServerException as error:
                return str(error.status()).removeprefix("StatusCode.")
            return "answered"


for _name in CLIENTS:
    by_clients(_name)


@check("tritonclient http: JSON in and out, gzip both ways")
def _(server: Server, known: Known) -> str:
    module = tritonclient.http
    with client(server, "http", CLIENTS) as asking:
        found = asking.infer(
            server.images_model,
            [pixel_input(module, known, binary_data=False)],
            outputs=[module.InferRequestedOutput("logits", binary_data=False)],
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        )
        return same(known, found.as_numpy("logits"))


@check("tritonclient grpc: gzip")
def _(server: Server, known: Known) -> str:
    with client(server, "grpc", CLIENTS) as asking:
        found = asking.infer(server.images_model, [pixel_input(tritonclient.grpc, known)], compression_algorithm="gzip")
        return same(known, found.as_numpy("logits"))


@check("tritonclient grpc: stream")
def _(server: Server, known: Known) -> str:
    answers: list[Any] = []
    with client(server, "grpc", CLIENTS) as asking:
        asking.start_stream(lambda result, error: answers.append(error or same(known, result.as_numpy("logits"))))
        for _ in range(3):
            asking.async_stream_infer(server.images_model, [pixel_input(tritonclient.grpc, known)])
        asking.stop_stream()
    return ", ".join(sorted(set(map(str, answers)))) if len(answers) == 3 else f"{len(answers)} of 3 answers"


# Bad requests over HTTP, each followed by a good one on the same connection.


def bad_http(name: str, expected: int, make: Callable[[Known], tuple[bytes, dict[str, str]]], path: str = "") -> None:
    @check(f"HTTP: {name}", f"{expected}, then 200")
    def _(server: Server, known: Known) -> str:
        connection = server.connect()
        body, headers = make(known)
        status, content, answer = post(connection, path or infer_path(server), body, headers)
        told = json.loads(content) if content else {}
        if status >= 400 and set(told) != {"error"}:
            return f"{status} without an error"
        if (status == 503) != ("Retry-After" in answer.headers):
            return f"{status}, Retry-After: {answer.getheader('Retry-After')}"
        connected = connection.sock is not None
        again, _, _ = post(connection, infer_path(server), json.dumps(as_json(known)).encode())
        connection.close()
        return f"{status}, then {again}{'' if connected else ' on another connection'}"


def changed(**changes: Any) -> Callable[[Known], tuple[bytes, dict[str, str]]]:
    return lambda known: (json.dumps(as_json(known, input=changes)).encode(), {})


def raw(body: bytes, **headers: str) -> Callable[[Known], tuple[bytes, dict[str, str]]]:
    return lambda known: (body, {name.replace("_", "-"): value for name, value in headers.items()})


def binary(extra: int = 0, said: int = 0, length: str | None = None) -> Callable[[Known], tuple[bytes, dict[str, str]]]:
    def make(known: Known) -> tuple[bytes, dict[str, str]]:
        size = known.pixels.nbytes
        given = {"name": "images", "datatype": "UINT8", "shape": list(known.pixels.shape)}
        whole = {"inputs": [{**given, "parameters": {"binary_data_size": size + said}}]}
        header = json.dumps(whole).encode()
        content = known.pixels.tobytes() + b"\0" * max(extra, 0)
        return header + content[: size + extra], {HEADER: length if length is not None else str(len(header))}

    return make


def gzip_bomb() -> bytes:
    """1 GB of zeros, compressed."""
    stream, zeros = zlib.compressobj(wbits=31), bytes(MIB)
    return b"".join([*(stream.compress(zeros) for _ in range(1024)), stream.flush()])


def jpeg_bomb() -> bytes:
    """A small file that says that it has 30,000 x 30,000 pixels."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "jpeg")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 30_000, 30_000)
    return bytes(content)


for _title, _expected, _make in [
    ("rank 3", 400, changed(shape=[2, 3, 4])),
    ("a negative size", 400, changed(shape=[-1, 4, 4, 3])),
    ("a batch of 0", 400, changed(shape=[0, 4, 4, 3], data=[])),
    ("a size that is no integer", 400, changed(shape=[1.5, 4, 4, 3])),
    ("a size of 2^62", 400, changed(shape=[1 << 62, 4, 4, 3])),
    ("more values than the shape", 400, changed(shape=[1, 1, 1, 3])),
    ("another datatype", 400, changed(datatype="FP32")),
    ("an unknown datatype", 400, changed(datatype="UINT9")),
    ("another name", 400, changed(name="image")),
    ("300 in UINT8", 400, lambda known: changed(data=[300] * known.pixels.size)(known)),
    ("1.5 in UINT8", 400, lambda known: changed(data=[1.5] * known.pixels.size)(known)),
    ("-1 in UINT8", 400, lambda known: changed(data=[-1] * known.pixels.size)(known)),
    ("a string in UINT8", 400, lambda known: changed(data=["a"] * known.pixels.size)(known)),
    ("no inputs", 400, raw(b'{"inputs": []}')),
    ("no object", 400, raw(b"[]")),
    ("an empty body", 400, raw(b"")),
    ("broken JSON", 400, raw(b'{"inputs": [')),
    (
        "NaN in JSON",
        400,
        lambda known: (
            json.dumps(as_json(known)).replace("[0", "[NaN").replace("[1", "[NaN").replace("[2", "[NaN").encode(),
            {},
        ),
    ),
    ("lists 100,000 deep", 400, raw(b"[" * 100_000)),
    ("an unknown output", 400, lambda known: (json.dumps(as_json(known, outputs=[{"name": "logit"}])).encode(), {})),
    ("binary data too short", 400, binary(-1)),
    ("binary data too long", 400, binary(1)),
    ("binary_data_size too small", 400, binary(0, -1)),
    ("header length -5", 400, binary(length="-5")),
    ("header length abc", 400, binary(length="abc")),
    ("header length 1e9", 400, binary(length="1e9")),
    ("header length 1000000000", 400, binary(length="1000000000")),
    ("an unknown encoding", 415, raw(b"{}", Content_Encoding="br")),
    ("gzip that is none", 400, raw(b"{}", Content_Encoding="gzip")),
    ("gzip that ends early", 400, raw(gzip.compress(b"{}" * 1000)[:-9], Content_Encoding="gzip")),
    ("a body of 100 MB", 413, lambda known: (bytes(100 * MIB), {})),
    ("1 GB in 1 MB of gzip", 413, lambda known: (gzip_bomb(), {"Content-Encoding": "gzip"})),
]:
    bad_http(_title, _expected, _make)


def bad_file(name: str, content: Callable[[], bytes]) -> None:
    @check(f"HTTP: {name}", "400, then 200")
    def _(server: Server, known: Known) -> str:
        connection = server.connect()
        path = f"/v2/models/{server.model}/infer"
        status, _, _ = post(connection, path, content(), {HEADER: "0"})
        again, _, _ = post(connection, path, known.file, {HEADER: "0"})
        connection.close()
        return f"{status}, then {again}"


bad_file("a JPEG of 900 million pixels", jpeg_bomb)
bad_file("a file that is no image", lambda: b"no image")


# Bad requests over gRPC, each followed by a good one on the same channel.


def message(server: Server, known: Known, **changes: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name=server.images_model, id="c9")
    given = {"name": "images", "datatype": "UINT8", "shape": known.pixels.shape}
    request.inputs.add(**{**given, **changes.pop("input", {})})
    request.raw_input_contents.extend(changes.pop("raw", [known.pixels.tobytes()]))
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def bad_grpc(name: str, expected: str, make: Callable[[Server, Known], Any]) -> None:
    @check(f"gRPC: {name}", f"{expected}, then answered")
    def _(server: Server, known: Known) -> str:
        channel, stub = server.stub()
        with channel:
            try:
                stub.ModelInfer(make(server, known), metadata=server.metadata, timeout=TIMEOUT_S)
                first = "answered"
            except grpc.RpcError as error:
                first = error.code().name
            try:
                stub.ModelInfer(message(server, known), metadata=server.metadata, timeout=TIMEOUT_S)
                then = "answered"
            except grpc.RpcError as error:
                then = error.code().name
        return f"{first}, then {then}"


def with_parameter(server: Server, known: Known, name: str, **value: Any) -> Any:
    request = message(server, known)
    for field, one in value.items():
        setattr(request.parameters[name], field, one)
    return request


INVALID = "INVALID_ARGUMENT"
for _title, _answer, _ask in [
    ("rank 3", INVALID, lambda s, k: message(s, k, input={"shape": [2, 3, 4]})),
    ("a batch of 0", INVALID, lambda s, k: message(s, k, input={"shape": [0, 4, 4, 3]}, raw=[b""])),
    ("a negative size", INVALID, lambda s, k: message(s, k, input={"shape": [-1, 4, 4, 3]})),
    ("another datatype", INVALID, lambda s, k: message(s, k, input={"datatype": "FP32"})),
    ("another name", INVALID, lambda s, k: message(s, k, input={"name": "image"})),
    ("no data", INVALID, lambda s, k: message(s, k, raw=[])),
    ("two raw contents", INVALID, lambda s, k: message(s, k, raw=[k.pixels.tobytes()] * 2)),
    ("raw contents too short", INVALID, lambda s, k: message(s, k, raw=[k.pixels.tobytes()[:-1]])),
    ("raw contents too long", INVALID, lambda s, k: message(s, k, raw=[k.pixels.tobytes() + b"a"])),
    ("an unknown version", "NOT_FOUND", lambda s, k: message(s, k, model_version="77")),
    ("a version that is no number", "NOT_FOUND", lambda s, k: message(s, k, model_version="new")),
    ("a timeout below 0", INVALID, lambda s, k: with_parameter(s, k, "timeout", int64_param=-1)),
    ("100 MB", "RESOURCE_EXHAUSTED", lambda s, k: message(s, k, raw=[bytes(100 * MIB)])),
]:
    bad_grpc(_title, _answer, _ask)


@check("gRPC: values in uint_contents")
def _(server: Server, known: Known) -> str:
    channel, stub = server.stub()
    with channel:
        request = message(server, known, raw=[])
        request.inputs[0].contents.uint_contents.extend(known.pixels.ravel().tolist())
        try:
            answer = stub.ModelInfer(request, metadata=server.metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        place = [output.name for output in answer.outputs].index("logits")
        return same(known, np.frombuffer(answer.raw_output_contents[place], "<f4").reshape(answer.outputs[place].shape))


def run(server: Server, known: Known, name: str) -> str:
    """Return what a server answers; an error of a client is an answer, too."""
    try:
        return CHECKS[name][1](server, known)
    except (InferenceServerException, grpc.RpcError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {str(error)[:80]}"


def main() -> None:
    """Print what servers answer beside what is expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=HTTP,GRPC[,MODEL[,IMAGES_MODEL]]")
    options = parser.parse_args()
    known = Known.of(options.bundle, options.image)
    servers = {}
    for text in options.server:
        name, _, places = text.partition("=")
        over_http, over_grpc, *models = places.split(",")
        model = models[0] if models else options.bundle.name
        servers[name] = Server(over_http, over_grpc, model, models[1] if len(models) > 1 else model)
    print("| request | expected |", " | ".join(servers), "|")
    print("|---|---|" + "---|" * len(servers))
    wrong = 0
    for name, (expected, _) in CHECKS.items():
        found = [run(server, known, name) for server in servers.values()]
        wrong += found[0] != expected
        told = ["as expected" if one == expected else one for one in found]
        print(f"| {name} | {expected} |", " | ".join(told).replace("\n", " "), "|", flush=True)
    print(f"\n{len(CHECKS)} requests; {next(iter(servers))}: {wrong} not as expected")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
