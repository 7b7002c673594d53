"""What the server has for people: a page, where one drops an image, and plain answers to an image file."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from tnn_runtime.answers.results import plain_levels
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.classifier import Classifier
from tnn_runtime.drawing import item_of, page, style
from tnn_runtime.options import shown
from tnn_runtime.replies import Answer
from tnn_runtime.server.bodies import Bodies
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.statuses import BadRequest, UnsupportedBody
from tnn_runtime.server.web import json_response, route, unless_gone

__all__ = ["people_routes"]

_FORM = "multipart/form-data"
_STYLE = "/* style of articles */"
_EXPECTED = "expected the bytes of an image file: curl --data-binary @image.jpg URL"
_DRAWN = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_CLASSES = 5
_EXPLAINED = 3

Query = Mapping[str, Any]


def people_routes(models: Models, bodies: Bodies, *, token: str | None) -> list[BaseRoute]:
    """Return the routes of the page, and of ``/predict`` and ``/explain``, to which one sends an image file.

    Args:
        models: What is served.
        bodies: What reads bodies.
        token: What requests must carry, but for the page itself; ``None`` for nothing.
    """

    def model(asked: Query) -> Model:
        name = asked.get("model", models.first.name)
        return models.get(name, asked.get("version"))

    def image_in(request: Request) -> AbstractAsyncContextManager[bytes]:
        if request.headers.get("content-type", "").strip().lower().startswith(_FORM):
            raise UnsupportedBody(f"got a form; {_EXPECTED}")
        return _file(request, bodies)

    async def home(request: Request) -> Response:
        html, policy = _home()
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def predict(request: Request) -> Response:
        asked = _query(request, {"top_k": _integer, "explain": _boolean, "reject": _boolean})
        found, top_k = model(asked), asked.get("top_k", _CLASSES)
        explain, reject = asked.get("explain", False), asked.get("reject", False)
        async with image_in(request) as image:
            work = found.deployment.run_async(lambda classifier: _answer(classifier, image, top_k, explain, reject))
            answer = await unless_gone(request, work)
        return json_response({"model_name": found.name, "model_version": str(found.version), **answer})

    async def explain(request: Request) -> Response:
        asked = _query(request, {"top_k": _integer, "against": str, "name": str})
        async with image_in(request) as image:
            work = model(asked).deployment.run_async(lambda classifier: _drawn(classifier, image, asked))
            return HTMLResponse(await unless_gone(request, work), headers=_DRAWN)

    return [
        route("/", home),
        route("/predict", predict, ["POST"], token),
        route("/explain", explain, ["POST"], token),
    ]


@asynccontextmanager
async def _file(request: Request, bodies: Bodies) -> AsyncIterator[bytes]:
    """Yield the image file that is the body of a request."""
    async with bodies.reading(request) as body:
        if not body:
            raise BadRequest(f"the body is empty; {_EXPECTED}")
        yield body


async def _answer(classifier: Classifier, image: bytes, top_k: int, explain: bool, reject: bool) -> dict[str, Any]:
    """Return the answer to an image as values for JSON."""
    if not explain:
        (predictions,) = await classifier.predict_async([image], top_k, reject=reject)
        more = {}
    else:
        found = await asyncio.wrap_future(classifier.submit(image, top_k, answer="all", reject=reject))
        predictions, explanations = found.predictions, found.explanations
        more = {"explanations": None if explanations is None else [one.to_dict() for one in explanations]}
    return {
        "predictions": [dataclasses.asdict(prediction) for prediction in predictions],
        "rejected": predictions.rejected if reject else None,
        "reject_score": predictions.reject_score,
        **plain_levels(predictions),
        **more,
    }


async def _drawn(classifier: Classifier, image: bytes, asked: Query) -> str:
    """Return a page with the explanation of an image."""
    request = classifier.submit(
        image,
        asked.get("top_k", _EXPLAINED),
        answer="all",
        reject="reject" in classifier.abilities,
        against=asked.get("against") or None,
        maps="maps" in classifier.abilities,
    )
    answer = await asyncio.wrap_future(request)
    return await asyncio.to_thread(_draw, classifier, image, answer, asked.get("name", ""))


def _draw(classifier: Classifier, image: bytes, answer: Answer, name: str) -> str:
    if answer.explanations is None:
        raise BadRequest(f"{classifier.missing_abilities['explain']}, or ask /predict")
    return page([item_of(classifier, answer, image, name)])


def _query(request: Request, known: Mapping[str, Callable[[str], Any]]) -> Query:
    """Return the parameters in the query of a request.

    Raises:
        BadRequest: If one is unknown, is there twice, or has no meaning.
    """
    known = {"model": str, "version": str, **known}
    asked: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            raise BadRequest(f"unknown parameter {shown(name)}{nearest(name, known)}; known are {', '.join(known)}")
        if name in asked:
            raise BadRequest(f"got the parameter {name} more than once; give it once")
        if not text and known[name] is str:
            continue
        try:
            asked[name] = known[name](text)
        except ValueError as error:
            raise BadRequest(f"{name} is {shown(text)}; expected {error}") from None
    return asked


def _integer(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError("an integer of at least 1")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in {"true", "false", "1", "0"}:
        raise ValueError("true or false")
    return text in {"true", "1"}


@cache
def _home() -> tuple[str, str]:
    """Return the page, and a policy that allows its own script and nothing of others."""
    html = files("tnn_runtime.server").joinpath("page.html").read_text(encoding="utf-8").replace(_STYLE, style())
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return html, (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
