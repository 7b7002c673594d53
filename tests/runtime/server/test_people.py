"""Plain answers to image files, without a browser: what comes back, and how each bad request is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from image_files import encode
from PIL import Image
from plain_bundle import plain_bundle
from serving import Client

from tnn_runtime import Deployment
from tnn_runtime.server.http import HttpOptions, http_app
from tnn_runtime.server.models import Model, Models

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8))
IMAGE = encode(PICTURE)
LARGEST = 1 << 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    plain = plain_bundle(tmp_path_factory.mktemp("plain") / "bundle")
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as pets, Deployment(plain, "cpu", threads=1) as shapes:
        yield Models([Model("pets", 1, pets), Model("pets", 2, pets), Model("shapes", 1, shapes)])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def client(models: Models, runner: asyncio.Runner) -> Iterator[Client]:
    client = Client(http_app(models, HttpOptions(max_body_bytes=LARGEST)), runner)
    yield client
    client.close()


@pytest.mark.parametrize("style", ["PNG", "JPEG", "BMP", "WEBP"])
def test_predict_answers_as_the_classifier(models: Models, client: Client, style: str) -> None:
    image = encode(PICTURE, style)
    answer = client.post("/predict?top_k=2", content=image)
    (expected,) = models.first.deployment.predict([image], top_k=2)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model_name"], told["model_version"], told["rejected"]) == ("pets", "2", None)
    assert [one["label"] for one in told["predictions"]] == [one.label for one in expected]
    assert [one["score"] for one in told["predictions"]] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_predict_tells_the_parents_of_classes_that_are_paths(tmp_path: Path, runner: asyncio.Runner) -> None:
    folder = shutil.copytree(FIXTURES / "bundle-v5", tmp_path / "bundle")
    content = json.loads((folder / "manifest.json").read_text())
    names = [f"animal/{name}" for name in content["class_names"]]
    (folder / "manifest.json").write_text(json.dumps({**content, "class_names": names}))
    with Deployment(folder, "cpu", threads=1) as pets:
        client = Client(http_app(Models([Model("pets", 1, pets)]), HttpOptions()), runner)
        told = client.post("/predict", content=IMAGE).json()
        best = told["predictions"][0]
        assert told["levels"] == [
            {"label": "animal", "score": pytest.approx(1)},
            {k: best[k] for k in ("label", "score")},
        ]
        why = client.request("POST", "/explain", params={"against": told["predictions"][1]["label"]}, content=IMAGE)
        assert why.status_code == 200
        assert best["label"] in why.text
        client.close()


def test_predict_tells_no_parents_where_there_are_none(client: Client) -> None:
    assert "levels" not in client.post("/predict", content=IMAGE).json()


@pytest.mark.parametrize(
    ("query", "model"),
    [("", "pets 2"), ("?version=1", "pets 1"), ("?model=pets&version=2", "pets 2"), ("?model=shapes", "shapes 1")],
)
def test_a_query_chooses_the_model(client: Client, query: str, model: str) -> None:
    told = client.post(f"/predict{query}", content=IMAGE).json()
    assert f"{told['model_name']} {told['model_version']}" == model


@pytest.mark.parametrize(("explain", "count"), [("true", 2), ("1", 2), ("false", None), ("0", None)])
def test_predict_explains_if_it_is_asked(client: Client, explain: str, count: int | None) -> None:
    told = client.post(f"/predict?explain={explain}", content=IMAGE).json()
    explanations = told.get("explanations")
    assert (None if explanations is None else len(explanations)) == count
    if explanations:
        assert [one["label"] for one in explanations] == [one["label"] for one in told["predictions"]]


def test_predict_rejects_if_it_is_asked(models: Models, client: Client) -> None:
    (expected,) = models.first.deployment.predict([IMAGE], reject=True)
    told = client.post("/predict?reject=true", content=IMAGE).json()
    assert expected.rejected, "an image that is not rejected shows nothing"
    assert (told["rejected"], told["predictions"]) == (True, [])
    assert told["reject_score"] == pytest.approx(expected.reject_score, abs=1e-5)


@pytest.mark.parametrize("name", ["cat.png", "<script>alert(1)</script>.png", "قطة.png"])
def test_explain_is_a_page_of_the_image(models: Models, client: Client, name: str) -> None:
    answer = client.request("POST", "/explain", params={"name": name}, content=IMAGE)
    ((best, *_),) = models.first.deployment.explain([IMAGE])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = answer.text
    assert all(text in page for text in (best.label, "data:image/png;base64,", "Where"))
    assert name.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<script" not in page


def test_explain_compares_with_another_class(models: Models, client: Client) -> None:
    ((best, other),) = models.first.deployment.explain([IMAGE])
    assert client.post(f"/explain?against={other.label}", content=IMAGE).status_code == 200
    refused = client.post(f"/explain?against={best.label}", content=IMAGE)
    assert refused.status_code == 400
    assert "is the best class of the image itself" in refused.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("topk=2", 400, "unknown parameter 'topk'; did you mean 'top_k'"),
        ("top_k=0", 400, "top_k is '0'; expected an integer of at least 1"),
        ("top_k=1.5", 400, "top_k is '1.5'; expected an integer"),
        ("top_k=٣", 400, "expected an integer"),
        ("top_k=1&top_k=2", 400, "got the parameter top_k more than once"),
        ("model=pet", 404, "unknown model 'pet'; did you mean 'pets'"),
        ("version=3", 404, "unknown version '3' of the model 'pets'; served are 1, 2"),
    ],
)
def test_a_wrong_query_is_refused(client: Client, path: str, query: str, status: int, message: str) -> None:
    answer = client.post(f"{path}?{query}", content=IMAGE)
    assert answer.status_code == status
    assert message in answer.json()["error"]


@pytest.mark.parametrize("query", ["explain=yes", "explain=", "reject=True"])
def test_what_is_neither_true_nor_false_is_refused(client: Client, query: str) -> None:
    answer = client.post(f"/predict?{query}", content=IMAGE)
    assert answer.status_code == 400
    assert "expected true or false" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is empty; expected the bytes of an image file"),
        (b"hello", 400, "it is a text file"),
        (IMAGE[:200], 400, "the file ends early"),
        (bytes(LARGEST + 1), 413, f"expected at most {LARGEST} bytes"),
    ],
    ids=["empty", "text", "cut off", "too large"],
)
def test_what_is_no_image_is_refused(client: Client, path: str, body: bytes, status: int, message: str) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "Multipart/Form-Data;boundary=x", "multipart/form-data"]
)
def test_a_form_is_refused(client: Client, path: str, kind: str) -> None:
    answer = client.post(path, content=IMAGE, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "got a form; expected the bytes of an image file" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/explain?model=shapes", "/explain?model=shapes&top_k=1", "/explain?model=shapes&name=a"]
)
def test_a_bundle_without_explanations_says_so(client: Client, path: str) -> None:
    answer = client.post(path, content=IMAGE)
    assert answer.status_code == 400
    assert "export it again, or ask /predict" in answer.json()["error"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic secret", 401), ("Bearer secret", 200), ("bearer  secret ", 200)],
)
def test_a_token_guards_answers_and_not_the_page(
    models: Models, runner: asyncio.Runner, authorization: str | None, status: int
) -> None:
    client = Client(http_app(models, HttpOptions(token="secret")), runner)
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/predict", "/explain"):
        answer = client.post(path, content=IMAGE, headers=headers)
        assert answer.status_code == status
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert client.get("/").status_code == 200
    client.close()


def test_the_page_may_run_its_own_script_and_load_nothing(client: Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert not [scheme for scheme in ("http:", "https:", "//") if scheme in answer.text]


def test_explanations_are_those_of_the_classifier(models: Models, client: Client) -> None:
    ((expected,),) = models.first.deployment.explain([IMAGE], top_k=1)
    (told,) = client.post("/predict?explain=true&top_k=1", content=IMAGE).json()["explanations"]
    assert (told["label"], told["formula"]) == (expected.label, expected.formula)
    assert told["logit"] == pytest.approx(expected.logit, rel=1e-4, abs=1e-5)
    total = sum(part["sign"] * part["value"] for part in told["parts"])
    assert told["logit"] == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert set(told["features"][0]) == {"index", "name", "parts"}


def test_a_model_that_drains_is_not_ready(runner: asyncio.Runner) -> None:
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as deployment:
        client = Client(http_app(Models([Model("p", 1, deployment)])), runner)
        version = deployment.info["version"]
        for ready in (True, False):
            status = 200 if ready else 503
            assert client.get("/v2/health/ready").status_code == status
            assert client.get("/v2/models/p/ready").status_code == status
            assert client.post("/predict", content=IMAGE).status_code == status
            told = client.get("/metrics").text
            assert f'tnn_ready{{model="p",version="{version}"}} {float(ready)}' in told
            assert f'tnn_images_total{{model="p",version="{version}"}} 1.0' in told
            assert client.get("/v2/health/live").status_code == 200
            deployment.drain()
        client.close()
