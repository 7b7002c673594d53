"""The models of a server: what they answer, and what is told of them."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from tnn_runtime import Deployment, UsageError
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.outputs import offered
from tnn_runtime.server.requests import Images, InferRequest, Wanted
from tnn_runtime.server.statuses import RequestTooLarge, UnknownModel

WANTED = (Wanted("logits", True), Wanted("embedding", True))


@pytest.fixture
def models(deployment: Deployment) -> Models:
    return Models(Model("photos", version, deployment) for version in (2, 10, 9))


@pytest.mark.parametrize("count", [1, 3])
def test_answers_are_those_of_the_classifier(deployment: Deployment, models: Models, count: int) -> None:
    shape = (count, *deployment.info["input_shape"])
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = asyncio.run(models.get("photos").infer(InferRequest(images, outputs=WANTED)))
    assert [one for _, one in found] == list(WANTED)
    for (tensor, _), expected in zip(found, (deployment.logits(images), deployment.embed(images)), strict=True):
        np.testing.assert_allclose(tensor.values, expected, rtol=1e-4, atol=1e-4)


def test_explanations_are_those_of_the_classifier(deployment: Deployment, models: Models) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *deployment.info["input_shape"]), dtype=np.uint8)
    names = [name for name, output in offered(deployment.abilities).items() if output.explains]
    request = InferRequest(image, outputs=tuple(map(Wanted, names)), top_k=2)
    found = {tensor.name: tensor for tensor, _ in asyncio.run(models.get("photos").infer(request))}
    explained = deployment.explain(image, 2)
    assert [[one.summary for one in row] for row in explained] == [
        [text.decode() for text in row] for row in found["summary"].values
    ]
    assert json.loads(found["explanation"].to_json()[0])["label"] == explained[0][0].label
    parts = [[[part.signed for part in one.parts] for one in row] for row in explained]
    np.testing.assert_allclose(found["parts"].values, parts, rtol=1e-4, atol=1e-4)


def test_metadata_shapes_are_those_of_answers(models: Models, deployment: Deployment) -> None:
    model = models.get("photos")
    images = np.zeros((2, *deployment.info["input_shape"]), np.uint8)
    told = {one["name"]: one for one in model.metadata(models.versions("photos"))["outputs"]}
    answer = asyncio.run(model.infer(InferRequest(images, outputs=tuple(map(Wanted, told)))))
    assert list(told) == [tensor.name for tensor, _ in answer]
    for tensor, _ in answer:
        assert told[tensor.name]["datatype"] == tensor.datatype
        assert all(
            size in (-1, found) for size, found in zip(told[tensor.name]["shape"], tensor.values.shape, strict=True)
        )
    stats = asyncio.run(models.stats("photos"))
    assert [one["version"] for one in stats["model_stats"]] == ["2", "9", "10"]
    json.dumps([model.config(), stats, models.index()], allow_nan=False)


@pytest.mark.parametrize("images", [np.zeros((4, 1, 1, 3), np.uint8), [b""] * 4])
def test_a_request_has_a_bound_of_images(deployment: Deployment, images: Images) -> None:
    with pytest.raises(RequestTooLarge, match="the request has 4 images; expected at most 3"):
        asyncio.run(Model("p", 1, deployment, max_images=3).infer(InferRequest(images)))


@pytest.mark.parametrize(("version", "served"), [(None, 10), ("", 10), ("2", 2), ("9", 9)])
def test_the_largest_version_serves_who_names_none(models: Models, version: str | None, served: int) -> None:
    assert models.get("photos", version).version == served


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("photo", None, "unknown model 'photo'; did you mean 'photos'"),
        ("photos", "3", "unknown version '3' of the model 'photos'; served are 2, 9, 10"),
        ("photos", "02", "unknown version '02'"),
    ],
)
def test_what_is_not_served_is_refused(models: Models, name: str, version: str | None, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        models.get(name, version)


def test_models_have_names_of_their_own(deployment: Deployment) -> None:
    with pytest.raises(UsageError, match="got two models 'a' of version 1"):
        Models([Model("a", 1, deployment)] * 2)
    with pytest.raises(UsageError, match="got no model"):
        Models([])
