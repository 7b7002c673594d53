"""The service over gRPC: deadlines, compressed messages, errors and streams."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import FOREVER

from tnn_runtime import Classifier, DeadlineExceeded, Deployment, QueueFull
from tnn_runtime.server import grpc as server_grpc
from tnn_runtime.server.addresses import Address
from tnn_runtime.server.grpc import GrpcApi, Servicer
from tnn_runtime.server.listeners import grpc_server
from tnn_runtime.server.models import Models
from tnn_runtime.server.options import HttpOptions, ServeOptions

MIB = 1 << 20


def asked(models: Models, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    """Return what a client gets that asks the service, which takes messages of up to 1 MiB."""

    async def main() -> Any:
        options = ServeOptions(HttpOptions(MIB))
        server, port = grpc_server(Servicer(GrpcApi(models)), Address("127.0.0.1", 0), options)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await ask(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        finally:
            await server.stop(None)

    return asyncio.run(main())


def message(pixels: np.ndarray[Any, Any]) -> Any:
    request = service_pb2.ModelInferRequest(model_name="p")
    request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request


@pytest.fixture
def pixels(deployment: Deployment) -> np.ndarray[Any, Any]:
    return np.zeros((1, *deployment.info["input_shape"]), np.uint8)


def code(call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[tuple[str, str, dict[str, str]]]]:
    async def ask() -> tuple[str, str, dict[str, str]]:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", dict(error.trailing_metadata() or ())
        return "OK", "", {}

    return ask


@pytest.mark.parametrize(
    ("error", "status", "message_", "pushback"),
    [
        (QueueFull("it is full"), "UNAVAILABLE", "it is full", True),
        (DeadlineExceeded("too late\nfor it"), "UNAVAILABLE", "too late for it", True),
        (MemoryError(), "UNAVAILABLE", "no memory left", True),
        (ZeroDivisionError("1 / 0"), "INTERNAL", "the server failed; its log tells why", False),
    ],
)
def test_every_error_has_its_status(
    models: Models,
    pixels: np.ndarray[Any, Any],
    error: Exception,
    status: str,
    message_: str,
    pushback: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Classifier, "answers_async", fail)
    found, details, trailing = asked(models, lambda stub: code(lambda: stub.ModelInfer(message(pixels)))())
    assert (found, message_ in details) == (status, True)
    assert ("grpc-retry-pushback-ms" in trailing) == pushback


def test_the_deadline_of_a_call_is_that_of_its_images(
    models: Models, pixels: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    answers_async = Classifier.answers_async

    async def look(self: Classifier, *arguments: Any, timeout_s: float | None, **options: Any) -> Any:
        limits.append(timeout_s)
        return await answers_async(self, *arguments, timeout_s=timeout_s, **options)

    monkeypatch.setattr(Classifier, "answers_async", look)

    async def ask(stub: Any) -> None:
        await stub.ModelInfer(message(pixels))
        await stub.ModelInfer(message(pixels), timeout=FOREVER)
        request = message(pixels)
        request.parameters["timeout"].int64_param = 1_000_000
        await stub.ModelInfer(request, timeout=FOREVER)

    asked(models, ask)
    assert limits[0] is None
    assert FOREVER / 2 < limits[1] < FOREVER + 2  # clients round it up
    assert limits[2] == 1.0


def test_a_call_whose_deadline_is_over_is_cancelled(
    models: Models, pixels: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def hang(*arguments: object, **options: object) -> None:
        try:
            await asyncio.sleep(FOREVER)
        finally:
            ended.append(True)

    monkeypatch.setattr(Deployment, "run_async", hang)

    async def ask(stub: Any) -> str:
        found, _, _ = await code(lambda: stub.ModelInfer(message(pixels), timeout=0.1))()
        while not ended:
            await asyncio.sleep(0.01)
        return str(found)

    assert asked(models, ask) == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_have_a_bound(models: Models, pixels: np.ndarray[Any, Any], compression: grpc.Compression) -> None:
    async def ask(stub: Any) -> list[str]:
        large = message(np.zeros((4 * MIB // 192, 8, 8, 3), np.uint8))
        calls = [large, message(pixels)]
        return [(await code(lambda one=one: stub.ModelInfer(one, compression=compression))())[0] for one in calls]

    assert asked(models, ask) == ["RESOURCE_EXHAUSTED", "OK"]


def test_a_stream_goes_on_after_an_error(models: Models, pixels: np.ndarray[Any, Any]) -> None:
    async def ask(stub: Any) -> list[str]:
        bad = message(pixels)
        bad.inputs[0].name = "image"
        requests = [message(pixels), bad, message(pixels)]
        for number, request in enumerate(requests):
            request.id = str(number)
        call = stub.ModelStreamInfer(iter(requests))
        return [f"{one.infer_response.id}: {one.error_message[:23]}" async for one in call]

    assert asked(models, ask) == ["0: ", "1: got the input 'image'; ", "2: "]


SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OFFERED = [name for name in SERVICE.methods_by_name if hasattr(server_grpc.GrpcApi, name)]
NOT_OFFERED = [name for name in SERVICE.methods_by_name if name not in (*OFFERED, "ModelStreamInfer")]


def sent(models: Models, name: str, content: bytes) -> tuple[str, str]:
    """Return the status and the message that a call with these bytes gets."""

    async def main() -> tuple[str, str]:
        server, port = grpc_server(Servicer(GrpcApi(models)), Address("127.0.0.1", 0), ServeOptions(HttpOptions(MIB)))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await channel.unary_unary(f"/{SERVICE.full_name}/{name}")(content)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        finally:
            await server.stop(None)
        return "OK", ""

    return asyncio.run(main())


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, but for gRPC's poller: it finds the event loop of an earlier test closed."""
    found = [record.getMessage() for record in caplog.records]
    return [message for message in found if not message.startswith("Exception in callback PollerCompletionQueue.")]


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0a\xff", b"\x0a\x01\xff"])
def test_bytes_that_are_no_message_are_a_wrong_request(
    models: Models, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("ModelReady", "ModelMetadata", "ModelInfer"):
            status, told = sent(models, name, content)
            assert (status, "the message cannot be read" in told) == ("INVALID_ARGUMENT", True)
    assert not logged(caplog)


def test_a_stream_goes_on_after_bytes_that_are_no_message(models: Models, pixels: np.ndarray[Any, Any]) -> None:
    async def main() -> list[Any]:
        server, port = grpc_server(Servicer(GrpcApi(models)), Address("127.0.0.1", 0), ServeOptions(HttpOptions(MIB)))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
                return [one async for one in call(iter([b"\xff\xff", message(pixels).SerializeToString()]))]
        finally:
            await server.stop(None)

    answers = [service_pb2.ModelStreamInferResponse.FromString(one) for one in asyncio.run(main())]
    assert [one.error_message[:27] for one in answers] == ["the message cannot be read;", ""]
    assert answers[1].infer_response.outputs


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_calls_that_the_server_does_not_have(models: Models, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        status, told = sent(models, name, b"")
    assert (status, told) == ("UNIMPLEMENTED", "this server has no shared memory, and no settings of traces and logs")
    assert not logged(caplog)


@pytest.mark.parametrize("letter", ["a", "\n", "\N{GRINNING FACE}"])
def test_errors_are_short_enough_for_a_trailer(models: Models, pixels: np.ndarray[Any, Any], letter: str) -> None:
    request = message(pixels)
    request.outputs.add(name=letter * 50_000).parameters["unknown"].bool_param = True
    status, told = sent(models, "ModelInfer", request.SerializeToString())
    assert (status, "parameters of output" in told, "\n" in told) == ("INVALID_ARGUMENT", True, False)
    request = message(pixels)
    request.parameters["reject" + letter * 50_000].bool_param = True
    assert sent(models, "ModelInfer", request.SerializeToString())[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("count", [1, 1000])
def test_large_messages_are_not_read_in_the_event_loop(
    models: Models, deployment: Deployment, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    read_request = server_grpc.read_request

    def look(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return read_request(*arguments)

    monkeypatch.setattr(server_grpc, "read_request", look)
    request = message(np.zeros((count, *deployment.info["input_shape"]), np.uint8))
    assert sent(models, "ModelInfer", request.SerializeToString())[0] == "OK"
    assert [thread is threading.main_thread() for thread in threads] == [count == 1]
