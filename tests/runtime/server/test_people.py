"""What the server has for people: answers to an image file, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import FIXTURES, draw_photos

from tnn_runtime import Classifier, Deployment
from tnn_runtime.server.http import http_app
from tnn_runtime.server.models import Model, Models

BUNDLE = FIXTURES / "bundle-v5"


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with Deployment(BUNDLE, "cpu", threads=1) as deployment:
        yield deployment


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    return (draw_photos(tmp_path / "photos", 1) / "cat" / "0.png").read_bytes()


def asked(deployment: Deployment, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the answer of the application to a request."""

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(http_app(Models([Model("p", 1, deployment)])))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def test_answers_are_those_of_the_classifier(deployment: Deployment, image: bytes) -> None:
    with Classifier.load(BUNDLE, "cpu") as classifier:
        (ranked,), ((explanation,),) = classifier.predict([image]), classifier.explain([image], top_k=1)
    found = asked(deployment, "POST", "/predict", content=image).json()
    assert "explanations" not in found
    assert [best["label"] for best in found["predictions"]] == [best.label for best in ranked]
    found = asked(deployment, "POST", "/predict?top_k=1&explain=true", content=image).json()
    (best,) = found["predictions"]
    assert (best["label"], best["index"]) == (ranked[0].label, ranked[0].index)
    assert best["score"] == pytest.approx(ranked[0].score, rel=1e-5)
    (told,) = found["explanations"]
    assert (told["label"], told["formula"]) == (explanation.label, explanation.formula)
    assert told["logit"] == pytest.approx(explanation.logit, rel=1e-4)
    assert told["logit"] == pytest.approx(sum(part["sign"] * part["value"] for part in told["parts"]), rel=1e-5)
    assert set(told["features"][0]) == {"index", "name", "parts"}


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("", b"", "not an image that can be read (it has 0 bytes)"),
        ("", b"no image", "not an image that can be read"),
        ("?top_k=0", b"", "top_k is '0'; expected an integer of at least 1"),
        ("?top_k=many", b"", "top_k is 'many'; expected an integer of at least 1"),
        ("?top_k=" + "9" * 5000, b"", "; expected an integer of at least 1"),
        ("?top_k=1&top_k=2", b"", "got the parameter top_k more than once"),
        ("?topk=1", b"", "unknown parameter 'topk'; did you mean 'top_k'?"),
        ("?model=q", b"", "unknown model 'q'"),
        ("?version=%ff", b"", "unknown version"),
    ],
)
def test_what_has_no_meaning_is_refused(
    deployment: Deployment, path: str, query: str, body: bytes, message: str
) -> None:
    answer = asked(deployment, "POST", path + query, content=body)
    assert answer.status_code in (400, 404)
    assert message in answer.json()["error"]


def test_words_that_are_neither_true_nor_false_are_refused(deployment: Deployment) -> None:
    for name in ("explain", "reject"):
        answer = asked(deployment, "POST", f"/predict?{name}=perhaps")
        assert (answer.status_code, answer.json()["error"]) == (400, f"{name} is 'perhaps'; expected true or false")


@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_a_form_is_told_how_to_send_an_image(deployment: Deployment, image: bytes, path: str) -> None:
    answer = asked(deployment, "POST", path, files={"file": image})
    assert (answer.status_code, "curl --data-binary" in answer.json()["error"]) == (415, True)


def test_a_model_that_drains_is_not_ready(deployment: Deployment, image: bytes) -> None:
    version = deployment.info["version"]
    for ready in (True, False):
        status = 200 if ready else 503
        assert asked(deployment, "GET", "/v2/health/ready").status_code == status
        assert asked(deployment, "GET", "/v2/models/p/ready").status_code == status
        assert asked(deployment, "POST", "/predict", content=image).status_code == status
        told = asked(deployment, "GET", "/metrics").text
        assert f'tnn_ready{{model="p",version="{version}"}} {float(ready)}' in told
        assert f'tnn_images_total{{model="p",version="{version}"}} 1.0' in told
        assert asked(deployment, "GET", "/v2/health/live").status_code == 200
        deployment.drain()
