"""Outputs of the graph beside logits and embedding: asked for by name, in every way to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from waiting import FOREVER

from tnn_runtime import Classifier, Deployment, UsageError
from tnn_runtime.server.models import Model
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.statuses import BadRequest
from tnn_train import ImageData

NAME = "feature_maps"


@pytest.fixture(scope="module")
def deployment(mapped: dict[str, Path]) -> Iterator[Deployment]:
    with Deployment(mapped["ratio"], "cpu", max_batch_size=3) as made:
        yield made


def test_they_are_those_of_the_graph_in_every_way_to_ask(
    deployment: Deployment, mapped: dict[str, Path], data: ImageData
) -> None:
    images = data.test.pixels[:5]
    session = onnxruntime.InferenceSession(mapped["ratio"] / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run([NAME], {"images": images})
    submitted = [deployment.submit(image, answer=NAME) for image in images]
    ways = [
        deployment.outputs(images, NAME, NAME)[NAME],
        deployment.outputs(images)[NAME],
        asyncio.run(deployment.outputs_async(images, NAME))[NAME],
        np.stack([one.result(FOREVER) for one in submitted]),
    ]
    for found in ways:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert deployment.outputs([], NAME)[NAME].shape == (0, *expected.shape[1:])
    (spec,) = deployment.current.extra_outputs
    assert (spec.name, spec.dtype, spec.shape) == (NAME, "float32", (None, *expected.shape[1:]))


def test_a_server_gives_them_if_they_are_asked_for(deployment: Deployment, data: ImageData) -> None:
    model, images = Model("photos", 1, deployment), data.test.pixels[:2]
    (tensor, _), (logits, _) = asyncio.run(model.infer(InferRequest(images, outputs=(Wanted(NAME), Wanted("logits")))))
    np.testing.assert_allclose(tensor.values, deployment.outputs(images, NAME)[NAME], rtol=1e-4, atol=1e-5)
    assert logits.name == "logits"
    (told,) = [one for one in model.metadata((1,))["outputs"] if one["name"] == NAME]
    assert told == {"name": NAME, "datatype": "FP32", "shape": [-1, *tensor.values.shape[1:]]}
    assert NAME not in [one.name for one, _ in asyncio.run(model.infer(InferRequest(images)))]


ASKING: dict[str, tuple[Callable[[Deployment, Any], object], type[Exception]]] = {
    "outputs": (lambda asked, image: asked.outputs([image], "logits", "units"), UsageError),
    "outputs_async": (lambda asked, image: asyncio.run(asked.outputs_async([image], "units")), UsageError),
    "submit": (lambda asked, image: asked.submit(image, answer="units"), UsageError),
    "infer": (
        lambda asked, image: asyncio.run(
            Model("p", 1, asked).infer(InferRequest(image[None], outputs=(Wanted("units"),)))
        ),
        BadRequest,
    ),
}


@pytest.mark.parametrize("way", ASKING)
def test_an_unknown_name_is_told_with_those_that_there_are(way: str, deployment: Deployment, data: ImageData) -> None:
    ask, error = ASKING[way]
    with pytest.raises(error, match=f"{'answer is' if way == 'submit' else 'output'} '.*{NAME}"):
        ask(deployment, data.test.pixels[0])


def test_where_there_are_none_the_export_is_named(bundles: dict[str, Path]) -> None:
    with Classifier.load(bundles["linear"], "cpu") as classifier:
        with pytest.raises(UsageError, match="it has none beside logits and embedding: export it again with --outputs"):
            classifier.outputs([], "distances")
        assert classifier.outputs([]) == {}
