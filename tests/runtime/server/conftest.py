"""What the tests of the server serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import FIXTURES

from tnn_runtime import Deployment
from tnn_runtime.server.models import Model, Models


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A bundle with a Tversky head, two classes, a threshold and exemplars, for images of 8 x 8 pixels."""
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as deployment:
        yield deployment


@pytest.fixture
def models(deployment: Deployment) -> Models:
    """That bundle alone, as ``p``."""
    return Models([Model("p", 1, deployment)])
