"""The application in the replicas of Ray Serve, and what goes around the proxies of Ray; without a cluster."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import yaml
from conftest import FIXTURES
from ray.serve.schema import ServeDeploySchema
from rooms import ROOT
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp
from tritonclient.grpc import service_pb2

from tnn_runtime import ClassifierClosed, TnnError, UsageError
from tnn_runtime.server.ray import Replica, _proxied, _Proxy, build

FIRST, SECOND = FIXTURES / "bundle-v5", FIXTURES / "bundle-v4"


@pytest.fixture
def replica() -> Iterator[Replica]:
    made = Replica(device="cpu", threads=1)
    yield made
    made.__del__()


def ask(app: ASGIApp, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ray") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def served(replica: Replica) -> dict[str, str]:
    """Return the bundle of each name and version that is served."""
    app = replica.__serve_build_asgi_app__()
    index = ask(app, "/v2/repository/index", "POST").json()
    paths = {f"{one['name']}:{one['version']}": f"{one['name']}/versions/{one['version']}" for one in index}
    return {
        name: Path(ask(app, f"/v2/models/{path}/config").json()["info"]["bundle"]).name for name, path in paths.items()
    }


def configure(replica: Replica, models: Any) -> None:
    asyncio.run(replica.reconfigure({"models": models}))


def test_a_replica_serves_the_models_of_its_configuration(replica: Replica) -> None:
    for models, expected in [
        ({"a": str(FIRST)}, {"a:1": FIRST.name}),
        ({"a": str(SECOND)}, {"a:1": SECOND.name}),
        ({"a": str(SECOND), "a:2": str(FIRST), "b:7": str(FIRST)}, dict.fromkeys(("a:2", "b:7"), FIRST.name)),
        ({"b:7": str(FIRST)}, {"b:7": FIRST.name}),
    ]:
        configure(replica, models)
        replica.check_health()
        assert served(replica).items() >= expected.items()
        assert len(served(replica)) == len(models)


def test_an_exchanged_bundle_answers_what_it_has_accepted(replica: Replica) -> None:
    configure(replica, {"a": str(FIRST)})
    shape = (1, *replica._deployments["a", 1].info["input_shape"])
    tensor = {"name": "images", "datatype": "UINT8", "shape": shape, "data": np.zeros(shape, int).ravel().tolist()}
    app = replica.__serve_build_asgi_app__()

    async def exchange() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ray") as client:
            found: list[int] = []

            async def send() -> None:
                while not exchanged.done():
                    found.append((await client.post("/v2/models/a/infer", json={"inputs": [tensor]})).status_code)

            exchanged = asyncio.ensure_future(replica.reconfigure({"models": {"a": str(SECOND)}}))
            await asyncio.gather(exchanged, *(send() for _ in range(4)))
            return found

    assert set(asyncio.run(exchange())) == {200}
    assert served(replica) == {"a:1": SECOND.name}


WRONG = [
    ({"a": "nothing"}, "nothing does not exist"),
    ({"a": str(SECOND), "b": "nothing"}, "nothing does not exist"),
    ({"a/b": str(SECOND)}, "'a/b'.*expected NAME or NAME:VERSION"),
    ({"a:0": str(SECOND)}, "'a:0'"),
    ({"a:1": str(SECOND), "a": str(SECOND)}, "two models a of version 1"),
    ({"a": 3}, "'a': 3"),
    ({3: str(SECOND)}, "3: "),
    ({}, "expected the bundle of each name"),
    ([str(SECOND)], "expected the bundle of each name"),
]


@pytest.mark.parametrize(("models", "message"), WRONG)
def test_a_wrong_configuration_leaves_what_serves(
    replica: Replica, models: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TnnError, match=message):
        configure(replica, models)
    with pytest.raises(ClassifierClosed, match="no models"):
        replica.check_health()
    configure(replica, {"a": str(FIRST)})
    configure(replica, models)  # Ray ends a replica that raises here.
    assert "this replica keeps the models that it has: " in caplog.text
    replica.check_health()
    assert served(replica) == {"a:1": FIRST.name}


def test_of_several_models_all_are_exchanged_or_none(replica: Replica) -> None:
    names = ("a", "b", "c")
    configure(replica, dict.fromkeys(names, str(FIRST)))
    for bad in names:
        configure(replica, {**dict.fromkeys(names, str(SECOND)), bad: "nothing"})
        assert served(replica) == {f"{name}:1": FIRST.name for name in names}


def test_a_model_that_is_not_ready_ends_the_replica(replica: Replica, tmp_path: Path) -> None:
    configure(replica, {"a": str(FIRST), "b": str(shutil.copytree(FIRST, tmp_path / "b"))})
    replica._deployments["b", 1].close()
    with pytest.raises(ClassifierClosed, match="the model b is not ready: this classifier is closed"):
        replica.check_health()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {"a": "x"}, "treads": 2}, "unknown argument 'treads'; did you mean 'threads'"),
        ({"models": {"a": "x"}, "max_body_mb": 0}, "max_body_mb is 0"),
        ({"models": {"a": "x"}, "max_batch_size": "8"}, "max_batch_size is '8'"),
        ({"models": {"a:b": "x"}}, "'a:b'"),
        ({"models": ["x"]}, "expected the bundle of each name"),
    ],
)
def test_what_is_wrong_is_told_before_it_is_deployed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(arguments)


def test_the_example_is_a_configuration_of_ray() -> None:
    found = ServeDeploySchema(**yaml.safe_load((ROOT / "examples" / "ray_serve.yaml").read_text()))
    (application,) = found.applications
    assert application.import_path == "tnn_runtime.server.ray:build"
    assert found.grpc_options.grpc_servicer_functions == ["tnn_runtime.server.ray.add_servicer"]
    (deployment,) = application.deployments
    assert deployment.name == build(application.args)._bound_deployment.name
    assert deployment.max_ongoing_requests == 2 * application.args["max_batch_size"]


def never_answers() -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    return app


def in_pieces() -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"it is ", "more_body": True})
        await send({"type": "http.response.body", "body": b"unavailable"})

    return app


@pytest.mark.parametrize(
    ("make", "told", "retry_after"),
    [
        (never_answers, "", "1"),
        (in_pieces, "(it is unavailable)", "1"),
        (lambda: PlainTextResponse("Request 1 timed out after 1.0s.", 408), "(Request 1 timed out after 1.0s.)", "1"),
        (lambda: PlainTextResponse("backpressure", 503, {"Retry-After": "7"}), "(backpressure)", "7"),
        (lambda: PlainTextResponse("backpressure", 429), "(backpressure)", "1"),
        (lambda: PlainTextResponse("one\ntwo", 503), "(one two)", "1"),
    ],
)
def test_what_the_http_proxy_refuses_is_worth_a_retry(make: Callable[[], ASGIApp], told: str, retry_after: str) -> None:
    answer = ask(_Proxy(make()), "/v2")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, retry_after)
    assert answer.json() == {"error": f"no replica answered this request{told and ' ' + told}; send it again"}


@pytest.mark.parametrize(
    ("response", "path"),
    [
        (JSONResponse({"error": "late"}, 503, {"Retry-After": "1"}), "/v2"),
        (JSONResponse({"a": 1}), "/v2"),
        (PlainTextResponse("Path '/x' not found", 404), "/x"),
        (PlainTextResponse("draining", 503), "/-/healthz"),
        (Response(b"\0" * 100, 200, media_type="application/octet-stream"), "/v2"),
    ],
)
def test_what_others_answer_comes_as_it_is(response: Response, path: str) -> None:
    answer = ask(_Proxy(response), path)
    assert (answer.status_code, answer.content) == (response.status_code, response.body)
    assert answer.headers.items() == httpx.Headers(response.raw_headers).items()


class Context:
    """The context of a call in the proxy of Ray."""

    def __init__(self, left_s: float | None = None) -> None:
        self.time_remaining = lambda: left_s
        self.given: tuple[Any, str, tuple[Any, ...]] = None, "", ()

    def code(self) -> Any:
        return self.given[0]

    def details(self) -> str:
        return self.given[1]

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self.given[2]

    def set_code(self, code: Any) -> None:
        self.given = code, *self.given[1:]

    def set_details(self, details: str) -> None:
        self.given = self.given[0], details, self.given[2]


OF_A_REPLICA = (("request_id", "1"),)


@pytest.mark.parametrize(
    ("code", "trailing", "expected"),
    [
        ("INTERNAL", (), "UNAVAILABLE"),
        ("RESOURCE_EXHAUSTED", (), "UNAVAILABLE"),
        ("DEADLINE_EXCEEDED", (), "UNAVAILABLE"),
        ("UNAVAILABLE", (), "UNAVAILABLE"),
        ("NOT_FOUND", (), "NOT_FOUND"),
        ("OK", OF_A_REPLICA, "OK"),
        ("INTERNAL", OF_A_REPLICA, "INTERNAL"),
        ("RESOURCE_EXHAUSTED", OF_A_REPLICA, "RESOURCE_EXHAUSTED"),
        ("UNAVAILABLE", OF_A_REPLICA, "UNAVAILABLE"),
    ],
)
def test_what_the_grpc_proxy_refuses_is_worth_a_retry(code: str, trailing: tuple[Any, ...], expected: str) -> None:
    async def handler(request: Any, context: Context) -> bytes:
        context.given = grpc.StatusCode[code], "the reason", trailing
        return b""

    context = Context()
    assert asyncio.run(_proxied(handler)(service_pb2.ServerLiveRequest(), context)) == b""
    assert context.code().name == expected
    told = "the reason"
    if expected == "UNAVAILABLE" and not trailing:
        told = "no replica answered this request (the reason); send it again"
    assert context.details() == told


@pytest.mark.parametrize(
    ("left_s", "given", "expected"),
    [(None, 0, 0), (None, 5, 5), (2.0, 0, 2_000_000), (2.0, 5, 5), (1e-9, 5, 1), (2.0, -5, -5), (1e6, 0, 2**31 - 1)],
)
def test_the_deadline_of_a_call_is_its_timeout(left_s: float | None, given: int, expected: int) -> None:
    seen = []

    async def handler(request: Any, context: Context) -> bytes:
        seen.append(request.parameters["timeout"].int64_param if "timeout" in request.parameters else 0)
        return b""

    request = service_pb2.ModelInferRequest()
    if given:
        request.parameters["timeout"].int64_param = given
    asyncio.run(_proxied(handler)(request, Context(left_s)))
    assert seen == [expected]


def test_every_call_of_the_service_has_a_method() -> None:
    class Given:
        def __init__(self) -> None:
            self.code: Any = None
            self.details = ""
            self.trailing: list[Any] = []
            self.set_code = lambda code: setattr(self, "code", code)
            self.set_details = lambda details: setattr(self, "details", details)
            self.set_trailing_metadata = lambda trailing: setattr(self, "trailing", trailing)

        def invocation_metadata(self) -> list[Any]:
            return []

    replica = Replica(device="cpu", threads=1)
    configure(replica, {"a": str(FIRST)})
    codes = {}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.name == "ModelStreamInfer":
            continue
        given = Given()
        asyncio.run(getattr(replica, method.name)(getattr(service_pb2, method.input_type.name)(), given))
        codes[method.name] = given.code and given.code.name
    replica.__del__()
    assert {codes[name] for name in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex")} == {None}
    assert {codes[name] for name in ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig")} == {"NOT_FOUND"}
    assert codes["TraceSetting"] == codes["SystemSharedMemoryStatus"] == "UNIMPLEMENTED"


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr("ray.serve", raising=False)
    monkeypatch.delitem(sys.modules, "tnn_runtime.server.ray")
    with pytest.raises(UsageError, match=r"Ray cannot be imported .*pip install .*'ray\[data,serve\]"):
        import tnn_runtime.server.ray  # noqa: F401
