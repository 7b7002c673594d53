"""A web service around a bundle: image files in, JSON out.

    pip install '.[cpu,examples]'
    TNN_BUNDLE=runs/photos-bundle uvicorn --app-dir examples service:app --timeout-graceful-shutdown 30
    curl --data-binary @cat.jpg 'http://localhost:8000/predict?top_k=3&explain=true'

``TNN_DEVICE`` chooses the device (default: auto). On SIGTERM uvicorn takes no new connections and answers the requests
it has; then the classifier drains and closes. Images of all requests gather into batches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from tnn_runtime import Classifier, Health, Prediction, TnnError, UsageError
from tnn_runtime.prometheus import prometheus_text

MAX_BODY = 16 << 20
"""Bytes of an image that is uploaded; no more is ever held in memory."""

TIMEOUT_S = 5.0
"""Seconds within which the batch of an image must begin."""

DRAIN_S = 30.0
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Answer:
    """What is known about an image."""

    predictions: list[Prediction]
    explanations: list[dict[str, Any]] | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the bundle before the first request; after the last one, drain and close."""
    bundle = os.environ.get("TNN_BUNDLE")
    if bundle is None:
        raise UsageError(
            "TNN_BUNDLE is not set; expected the folder of a bundle: TNN_BUNDLE=runs/photos-bundle uvicorn …"
        )
    device = os.environ.get("TNN_DEVICE", "auto")
    classifier = await asyncio.to_thread(Classifier.load, bundle, device, timeout_s=TIMEOUT_S)
    app.state.classifier, app.state.name = classifier, Path(bundle).name
    try:
        yield
    finally:
        await asyncio.to_thread(classifier.drain, DRAIN_S)
        await asyncio.to_thread(classifier.close)


app = FastAPI(title="Tversky classifier", lifespan=lifespan, redirect_slashes=False)


@app.exception_handler(TnnError)
async def refuse(request: Request, error: TnnError) -> JSONResponse:
    """Answer an error of the classifier with what it says of itself."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.http_status == 503 else None
    return JSONResponse(error.to_dict(), error.http_status, headers)


@app.exception_handler(RequestValidationError)
async def refuse_query(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a query that has no meaning."""
    wrong = "; ".join(f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": wrong}, 400)


async def read_image(request: Request) -> bytes:
    """Return the body, unless it is larger than `MAX_BODY`, whatever its header says."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "got a form; expected the bytes of an image file: curl --data-binary @image.jpg")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"got more than {MAX_BODY} bytes; scale the image down or compress it")
    except ClientDisconnect:
        raise HTTPException(400, "the connection was lost") from None
    return bytes(body)


IMAGE_BODY = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}


@app.post("/predict", openapi_extra={"requestBody": IMAGE_BODY})
async def predict(request: Request, top_k: int = 5, explain: bool = False) -> Answer:
    """Classify the image file that is the body of the request; explain the best classes on demand."""
    classifier: Classifier = request.app.state.classifier
    image = await read_image(request)
    if not explain:
        (predictions,) = await classifier.predict_async([image], top_k)
        return Answer(predictions)
    (explanations,) = await classifier.explain_async([image], top_k)
    return Answer(
        [Prediction(found.label, found.score, found.index) for found in explanations],
        [found.to_dict() for found in explanations],
    )


@app.get("/health/live")
async def live() -> dict[str, bool]:
    """Tell that the process runs; if this fails, restart it."""
    return {"live": True}


@app.get("/health/ready")
async def ready(request: Request, response: Response) -> Health:
    """Tell whether requests should be sent here: not while it drains, and not after its device was lost."""
    health: Health = request.app.state.classifier.health
    response.status_code = 200 if health.ready else 503
    return health


@app.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """Return the counters and histograms of the classifier for Prometheus."""
    text = prometheus_text(**{request.app.state.name: request.app.state.classifier})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
