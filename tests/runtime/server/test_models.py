"""The models of a server: what they answer, and what is told of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import FIXTURES

from tnn_runtime import Deployment, UsageError
from tnn_runtime.server.models import Model, Models
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.statuses import UnknownModel

WANTED = (Wanted("logits", True), Wanted("embedding", True))


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as deployment:
        yield deployment


@pytest.fixture
def models(deployment: Deployment) -> Models:
    return Models(Model("photos", version, deployment) for version in (2, 10, 9))


@pytest.mark.parametrize("count", [1, 3])
def test_answers_are_those_of_the_classifier(deployment: Deployment, models: Models, count: int) -> None:
    shape = (count, *deployment.info["input_shape"])
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    body = asyncio.run(models.get("photos").infer(InferRequest(images, "a", WANTED)))
    header = json.loads(body.content[: body.header_length])
    assert (header["id"], header["model_version"]) == ("a", "10")
    values = np.frombuffer(body.content[body.header_length :], "<f4")
    expected = np.concatenate([deployment.logits(images).ravel(), deployment.embed(images).ravel()])
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_metadata_shapes_are_those_of_answers(models: Models, deployment: Deployment) -> None:
    model = models.get("photos")
    images = np.zeros((2, *deployment.info["input_shape"]), np.uint8)
    told = {one["name"]: one for one in model.metadata(models.versions("photos"))["outputs"]}
    answer = json.loads(asyncio.run(model.infer(InferRequest(images))).content)
    assert list(told) == [one["name"] for one in answer["outputs"]]
    for one in answer["outputs"]:
        shape = told[one["name"]]["shape"]
        assert told[one["name"]]["datatype"] == one["datatype"]
        assert all(size in (-1, found) for size, found in zip(shape, one["shape"], strict=True))
    json.dumps([model.config(), model.stats(), models.index()], allow_nan=False)


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
