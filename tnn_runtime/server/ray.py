"""The application on Ray Serve, with the same answers over HTTP and gRPC; needs the extra ray.

A configuration for ``serve run`` or ``serve deploy`` names `build` as the application, `add_servicer` as the service of
gRPC, and ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names `proxy_middleware`; ``examples/ray_serve.yaml`` is one.
In Python:

    from ray import serve
    from tnn_runtime.server.ray import build

    serve.run(build({"models": {"photos": "runs/photos-bundle"}, "device": "cpu"}))

Images of all requests that a replica has gather into batches as everywhere; ``@serve.batch`` is not needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.classifier import Classifier
from tnn_runtime.deployment import Deployment
from tnn_runtime.errors import ClassifierClosed, TnnError, UsageError
from tnn_runtime.options import at_least_one, shown
from tnn_runtime.ray.library import allotted, needs_ray
from tnn_runtime.text import one_line

with needs_ray():
    import grpc
    from ray import serve
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from tnn_runtime.server.grpc import GrpcApi, Servicer
    from tnn_runtime.server.http import HttpOptions, http_app
    from tnn_runtime.server.web import RETRY_AFTER_S, json_response

from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.names import named
from tnn_runtime.server.options import MEBIBYTE
from tnn_runtime.server.statuses import RequestTooLarge

__all__ = ["Replica", "add_servicer", "build", "proxy_middleware"]

_LOG = logging.getLogger(__name__)
_BATCH = 64
_SHOWN = 200
_GRACE_S = 60.0
_LONGEST_US = (1 << 31) - 1

_SURGE_PERCENT = 100
"""How many replicas more there may be during an exchange: old ones end once new ones serve, and serve on if none do."""

_LOOK_EVERY_S = 2.0
"""How often Ray looks whether a replica is there: so long nothing takes the place of one that was killed."""

_LOADING = frozenset(inspect.signature(Classifier.load).parameters) - {"bundle"}

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for ``serve.run``, or for ``import_path: tnn_runtime.server.ray:build``.

    The options of the deployment ``tnn`` can be changed as those of any other. By default a replica has up to twice as
    many requests at a time as images go into a batch: one batch runs while the next one gathers.

    Args:
        args: ``models``, the bundle folder of each ``NAME`` or ``NAME:VERSION``, which may be given as
            ``user_config`` of the deployment instead; ``max_body_mb``, how large a request may be (64); and
            arguments of `Classifier.load`. By default a replica has as many threads as Ray allots cores to it, and
            ``timeout_s`` is 30.

    Raises:
        UsageError: If an argument is unknown or out of its range.
    """
    options = dict(args)
    models, max_body_mb = options.pop("models", None), options.pop("max_body_mb", 64)
    for name in options:
        if name not in _LOADING:
            known = sorted({"models", "max_body_mb", *_LOADING})
            raise UsageError(f"unknown argument {shown(name)}{nearest(name, known)}; known are {', '.join(known)}")
    at_least_one(max_body_mb=max_body_mb, max_batch_size=options.get("max_batch_size", _BATCH))
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name="tnn",
        user_config=None if models is None else {"models": _told(models)},
        max_ongoing_requests=2 * options.get("max_batch_size", _BATCH),
        graceful_shutdown_timeout_s=_GRACE_S,
        health_check_period_s=_LOOK_EVERY_S,
        max_surge_percent=_SURGE_PERCENT,
    )
    return deployment.bind(max_body_mb, **options)


class _Api(GrpcApi):
    """The calls of gRPC with a limit of their size, as the proxies of Ray have none."""

    def __init__(self, models: Models, largest: int) -> None:
        super().__init__(models)
        self._largest = largest

    async def ModelInfer(self, request: Any, timeout_s: float | None = None) -> Any:  # noqa: N802
        size = request.ByteSize()
        if size > self._largest:
            raise RequestTooLarge(
                f"the message has {size} bytes; expected at most {self._largest} bytes: send fewer or smaller images"
            )
        return await super().ModelInfer(request, timeout_s)


class Replica:
    """What Ray starts in each replica: the models of ``user_config``, and what answers over HTTP and gRPC.

    Args:
        max_body_mb: How large a request may be, in MiB.
        **options: Arguments of `Classifier.load`.
    """

    def __init__(self, max_body_mb: int = 64, **options: Any) -> None:
        self._bundles: dict[tuple[str, int], Path] = {}
        self._deployments: dict[tuple[str, int], Deployment] = {}
        self._exchanging = threading.Lock()
        self._options = {"timeout_s": 30.0, **allotted(), **options}
        self._http = HttpOptions(max_body_mb * MEBIBYTE)
        self._app: ASGIApp = Starlette()
        self._servicer: Any = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application over HTTP, as Ray asks for it."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, receive, send)

        return app

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve the models of a configuration in place of those of before, without a gap.

        New bundles are loaded beside the old ones, which answer what they have accepted. If one cannot be loaded, the
        old ones serve on, and an error is logged: Ray would end a replica that raises it, and nothing would serve.

        Args:
            user_config: ``models``, the bundle folder of each ``NAME`` or ``NAME:VERSION``.

        Raises:
            TnnError: As `Classifier.load`, or for a configuration that names no models, if nothing serves yet.
        """
        try:
            bundles = _bundles(user_config)
            await asyncio.to_thread(self._exchange, bundles)
        except TnnError as error:
            if not self._deployments:
                raise
            _LOG.error("this replica keeps the models that it has: %s", error)

    def check_health(self) -> None:
        """Make sure that requests should be sent here; where they should not, Ray starts another replica.

        Raises:
            ClassifierClosed: If a model is not ready, for example as its device is lost.
        """
        if not self._deployments:
            raise ClassifierClosed("this replica has no models; give them as user_config: {models: {NAME: BUNDLE}}")
        for (name, _), deployment in self._deployments.items():
            health = deployment.health
            if not health.ready:
                raise ClassifierClosed(f"the model {name} is not ready: {health.reason}")

    def __del__(self) -> None:
        """Answer what is left, and close the models: Ray calls this when no request is left."""
        for deployment in self._deployments.values():
            deployment.drain(_GRACE_S)
            deployment.close()

    def _exchange(self, bundles: dict[tuple[str, int], Path]) -> None:
        """Load what is new, exchange what has changed, and close what is gone; in this thread."""
        with self._exchanging:
            before, added = self._deployments, {}
            exchanged = []
            try:
                for key in bundles.keys() - before.keys():
                    added[key] = Deployment(bundles[key], **self._options)
                for key in bundles.keys() & before.keys():
                    if bundles[key] != self._bundles[key]:
                        before[key].reload(bundles[key])
                        exchanged.append(key)
            except BaseException:
                for deployment in added.values():
                    deployment.close()
                for key in exchanged:
                    before[key].reload(self._bundles[key])
                raise
            found = {key: added[key] if key in added else before[key] for key in bundles}
            models = Models([Model(name, version, deployment) for (name, version), deployment in found.items()])
            self._app, self._servicer = http_app(models, self._http), Servicer(_Api(models, self._http.max_body_bytes))
            self._bundles, self._deployments = dict(bundles), found
            for key in before.keys() - bundles.keys():
                before[key].drain(_GRACE_S)
                before[key].close()


def _answering(name: str) -> Callable[[Replica, Any, Any], Coroutine[Any, Any, Any]]:
    """Return the method of a replica for a call of gRPC."""

    async def answer(self: Replica, request: Any, grpc_context: Any) -> Any:
        context = _Context(grpc_context)
        try:
            return await getattr(self._servicer, name)(request, context)
        except (_Aborted, NotImplementedError):
            return service_pb2.ServerLiveResponse()  # An empty message: the status is what Ray sends.

    answer.__name__ = answer.__qualname__ = name
    return answer


async def _stream(self: Replica, requests: AsyncIterator[Any], grpc_context: Any) -> AsyncIterator[Any]:
    with contextlib.suppress(_Aborted):
        async for answer in self._servicer.ModelStreamInfer(requests, _Context(grpc_context)):
            yield answer


def _read(name: str, content: bytes) -> Any:
    return getattr(service_pb2, name).FromString(content)


def _reduced(message: Any) -> tuple[Callable[[str, bytes], Any], tuple[str, bytes]]:
    return _read, (message.DESCRIPTOR.name, message.SerializeToString())


for _method in _SERVICE.methods:
    # The proxy sends requests to replicas with pickle, which looks for the classes of tritonclient in a module that its
    # wheel has under another name.
    copyreg.pickle(getattr(service_pb2, _method.input_type.name), _reduced)
    setattr(Replica, _method.name, _stream if _method.name == "ModelStreamInfer" else _answering(_method.name))


class _Aborted(Exception):
    """A call whose status is set."""


class _Context:
    """The context of a call as grpc.aio has it, made of that which Ray sends to a replica."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.invocation_metadata = context.invocation_metadata
        self.set_code = context.set_code
        self.set_details = context.set_details

    def time_remaining(self) -> None:
        """Tell nothing: what is left until the deadline is in the request, where `add_servicer` puts it."""

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        """End the call with a status."""
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise _Aborted


def add_servicer(servicer: Any, server: Any) -> None:
    """Add the service to the gRPC proxy of Ray: an entry of ``grpc_options.grpc_servicer_functions``.

    Calls that Ray itself refuses, since a replica was lost or too many calls wait, get UNAVAILABLE: they are worth a
    retry. What is left until the deadline of a call is its timeout.

    Args:
        servicer: What Ray gives.
        server: The gRPC server of the proxy.
    """
    make = server.service_handler_factory

    def making(**about: Any) -> Any:
        handler = make(**about)
        return _proxied(handler) if about["streaming_type"].name == "UNARY_UNARY" else handler

    server.service_handler_factory = making
    try:
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    finally:
        server.service_handler_factory = make


def _proxied(handler: Any) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        left_s = context.time_remaining()
        if left_s is not None and isinstance(request, service_pb2.ModelInferRequest):
            left_us = min(max(1, int(left_s * 1e6)), _LONGEST_US)
            if "timeout" not in request.parameters or request.parameters["timeout"].int64_param > left_us:
                request.parameters["timeout"].int64_param = left_us
        response = await handler(request, context)
        # What a replica answers has the trailing metadata that Ray sent with the request.
        if context.code() in _RAYS_OWN and not context.trailing_metadata():
            context.set_details(_lost(context.details()))
            context.set_code(grpc.StatusCode.UNAVAILABLE)
        return response

    return answer


_RAYS_OWN = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
)
"""With what Ray answers itself: a replica was lost, too many calls wait, a call took too long, or no replica starts."""


def proxy_middleware() -> list[Middleware]:
    """Return what goes around the HTTP proxy of Ray: name it in ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.

    Requests that Ray itself refuses get 503 with Retry-After, and ``{"error": ...}`` as from a replica. Without it they
    get 500 where a replica was lost, and 408 or 503 where ``request_timeout_s`` is over or too many requests wait.
    """
    return [Middleware(_Proxy)]


class _Proxy:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        started, retry_after, told = False, RETRY_AFTER_S, ""

        async def sending(message: Message) -> None:
            nonlocal started, retry_after, told
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                # A replica has no plain text with these statuses.
                started = message["status"] not in (408, 429, 503) or not _is_plain_text(headers)
                retry_after = headers.get("retry-after", retry_after)
            elif not started:
                told += message.get("body", b"").decode(errors="replace")
            if started:
                await send(message)

        await self._app(scope, receive, sending)
        if not started:
            refusal = json_response({"error": _lost(told)}, 503, {"Retry-After": retry_after})
            await refusal(scope, receive, send)


def _is_plain_text(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith("text/plain")


def _lost(why: str) -> str:
    """Return what a request is told that no replica has answered; ``why`` is what Ray says."""
    why = one_line(why)[:_SHOWN]
    return f"no replica answered this request{why and f' ({why})'}; send it again"


def _told(models: Any) -> dict[str, str]:
    """Return models as values for ``user_config``, checked."""
    return {f"{name}:{version}": str(bundle) for (name, version), bundle in _bundles({"models": models}).items()}


def _bundles(user_config: Any) -> dict[tuple[str, int], Path]:
    """Return the bundle folder of each name and version.

    Raises:
        UsageError: If the configuration does not tell.
    """
    models = user_config.get("models") if isinstance(user_config, Mapping) else None
    if not isinstance(models, Mapping) or not models:
        raise UsageError(f"got {shown(user_config)}; expected the bundle of each name: {{models: {{NAME: BUNDLE}}}}")
    found: dict[tuple[str, int], Path] = {}
    for name, bundle in models.items():
        key = named(name) if isinstance(name, str) else None
        if key is None or not isinstance(bundle, str | Path):
            raise UsageError(
                f"got {shown(name)}: {shown(bundle)} among the models; expected NAME or NAME:VERSION, and the path of "
                "its bundle"
            )
        if key in found:
            raise UsageError(f"got two models {key[0]} of version {key[1]}; give them versions, such as {key[0]}:2")
        found[key] = Path(bundle)
    return found
