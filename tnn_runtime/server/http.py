"""The application that serves models over HTTP; needs the extra serve.

    from tnn_runtime.server.http import http_app
    from tnn_runtime.server.models import Model, Models

    app = http_app(Models([Model("photos", 1, Deployment("runs/photos-bundle"))]))

It is an ASGI application, for `tnn-runtime serve`, for other servers, and to be mounted in an application of your own.
"""

from __future__ import annotations

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tnn_runtime.prometheus import prometheus_text
    from tnn_runtime.server.people import people_routes
    from tnn_runtime.server.protocol import protocol_routes
    from tnn_runtime.server.web import refuse_path, route
except ImportError as error:
    raise UsageError(f"serving needs more packages ({error}); run: {install_command('serve')}") from error

from tnn_runtime.server.bodies import Bodies
from tnn_runtime.server.models import Models
from tnn_runtime.server.options import HttpOptions

__all__ = ["HttpOptions", "http_app"]

_WORTH_COMPRESSING = 1 << 12
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def http_app(models: Models, options: HttpOptions | None = None) -> Starlette:
    """Return the application.

    Args:
        models: What is served; who makes them closes them.
        options: How it takes requests.
    """
    options = options or HttpOptions()
    bodies = Bodies(options.max_body_bytes, options.body_timeout_s)

    async def metrics(request: Request) -> Response:
        return Response(prometheus_text(**await models.counted()), media_type=_PROMETHEUS)

    app = Starlette(
        routes=[
            *people_routes(models, bodies, token=options.token),
            *protocol_routes(models, bodies, token=options.token),
            route("/metrics", metrics, token=options.token),
        ],
        middleware=[
            Middleware(_CloseWhileDraining, models),
            Middleware(GZipMiddleware, minimum_size=_WORTH_COMPRESSING, compresslevel=1),
        ],
        exception_handlers={HTTPException: refuse_path},
    )
    app.router.redirect_slashes = False
    return app


class _CloseWhileDraining:
    """Tells clients of a server that is about to end to make their next connection, which another server gets."""

    def __init__(self, app: ASGIApp, models: Models) -> None:
        self._app = app
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._models.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing)
