"""The Open Inference Protocol over HTTP: its paths, with the extensions of Triton for binary data and repositories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from tnn_runtime.options import shown
from tnn_runtime.server.bodies import Bodies
from tnn_runtime.server.models import Model, Models, server_metadata
from tnn_runtime.server.requests import HEADER_LENGTH, parse_request, read_options
from tnn_runtime.server.responses import response_body
from tnn_runtime.server.statuses import NotAllowed, UnknownModel
from tnn_runtime.server.threads import LARGE, off_loop
from tnn_runtime.server.tokens import hidden
from tnn_runtime.server.web import Endpoint, header, json_response, route, unless_gone

__all__ = ["protocol_routes"]

_JSON, _BINARY = "application/json", "application/octet-stream"


def protocol_routes(models: Models, bodies: Bodies, *, token: str | None) -> list[BaseRoute]:
    """Return the routes of the protocol.

    Args:
        models: What is served.
        bodies: What reads bodies.
        token: What requests must carry, but for those about health; ``None`` for nothing.
    """

    def told(tell: Callable[[Request], Any]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return json_response(tell(request))

        return endpoint

    def health(is_well: Callable[[Request], bool], why: str) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return json_response({}) if is_well(request) else json_response({"error": why}, 503)

        return endpoint

    def model(request: Request) -> Model:
        return models.get(request.path_params["model"], request.path_params.get("version"))

    def is_ready(request: Request) -> bool:
        try:
            return model(request).ready and not models.draining
        except UnknownModel as error:
            raise hidden(error, token) from None

    def metadata(request: Request) -> dict[str, Any]:
        return model(request).metadata(models.versions(request.path_params["model"]))

    async def stats(request: Request) -> Response:
        return json_response(await models.stats(request.path_params.get("model"), request.path_params.get("version")))

    async def infer(request: Request) -> Response:
        found = model(request)
        async with bodies.reading(request) as body:
            asked = await off_loop(len(body) > LARGE, parse_request, body, header(request, HEADER_LENGTH))
            outputs = await unless_gone(request, found.infer(asked))
        answer = await off_loop(asked.is_large, response_body, found.name, str(found.version), asked.id, outputs)
        if answer.header_length is None:
            return Response(answer.content, media_type=_JSON)
        return Response(answer.content, 200, {HEADER_LENGTH: str(answer.header_length)}, _BINARY)

    async def index(request: Request) -> Response:
        async with bodies.reading(request) as body:
            only_ready = read_options(body, ("ready",)).get("ready", False)
        return json_response(models.index(only_ready))

    async def load(request: Request) -> Response:
        async with bodies.reading(request) as body:
            read_options(body, ())
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise NotAllowed(
                f"got a request of a page of {shown(origin)}; only this server's own pages may reload models"
            )
        await models.load(request.path_params["model"])
        return json_response({})

    async def unload(request: Request) -> Response:
        await models.unload(request.path_params["model"])
        return json_response({})

    both = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    answers: dict[str, Endpoint] = {"": told(metadata), "/config": told(lambda request: model(request).config())}
    return [
        route("/v2", told(lambda request: server_metadata()), token=token),
        route("/v2/health/live", health(lambda request: True, "")),
        route("/v2/health/ready", health(lambda request: models.ready, "this server is not ready")),
        route("/v2/models/stats", stats, token=token),
        route("/v2/repository/index", index, ["POST"], token),
        route("/v2/repository/models/{model}/load", load, ["POST"], token),
        route("/v2/repository/models/{model}/unload", unload, ["POST"], token),
        *(route(path + more, endpoint, token=token) for more, endpoint in answers.items() for path in both),
        *(route(f"{path}/stats", stats, token=token) for path in both),
        *(route(f"{path}/infer", infer, ["POST"], token) for path in both),
        *(route(f"{path}/ready", health(is_ready, "this model is not ready")) for path in both),
    ]
