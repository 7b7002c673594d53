"""A bundle that is exchanged while it serves."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from waiting import FOREVER, until

from tnn_runtime import ArtifactError, Classifier, ClassifierClosed, Deployment, InputError, Manifest, Prediction
from tnn_runtime.prometheus import prometheus_text
from tnn_train import ImageData

Answer = tuple[tuple[str, float], ...]


@pytest.fixture
def versions(bundles: dict[str, Path], tmp_path: Path) -> list[Path]:
    """Two bundles that differ in their model and in the names of their classes."""
    first, second = (shutil.copytree(bundles[head], tmp_path / head) for head in ("tversky", "linear"))
    manifest, _ = Manifest.read(second)
    Manifest(**{**vars(manifest), "class_names": ("wolf", "lynx")}).write(second)
    return [first, second]


def shown(predictions: list[Prediction]) -> Answer:
    return tuple((one.label, round(one.score, 4)) for one in predictions)


def test_each_request_is_answered_by_the_bundle_that_accepted_it(versions: list[Path], data: ImageData) -> None:
    image = data.test.pixels[0]
    expected = []
    for version in versions:
        with Classifier.load(version, "cpu", threads=1) as classifier:
            expected.append(shown(classifier.predict(image[None])[0]))
    answers: list[Answer] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def ask(deployment: Deployment) -> None:
        while not stop.is_set():
            try:
                futures: list[Future[Any]] = [deployment.submit(image) for _ in range(5)]
                direct = deployment.predict(image[None])[0]
                (awaited,) = asyncio.run(deployment.predict_async(image[None]))
                answers.extend(map(shown, [*(future.result(FOREVER) for future in futures), direct, awaited]))
            except Exception as error:
                errors.append(error)
                return

    with Deployment(versions[0], "cpu", threads=1) as deployment:
        threads = [threading.Thread(target=ask, args=(deployment,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        digests = []
        for version in (versions[1], versions[0], versions[1]):
            before = len(answers)
            assert deployment.reload(version)
            digests.append(deployment.info["digest"])
            until(lambda before=before: len(answers) > before + 40 or errors)  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join(FOREVER)
        assert errors == []
        assert set(answers) == set(expected)
        assert deployment.class_names == ("wolf", "lynx")
        assert len(set(digests)) == 2
    with pytest.raises(ClassifierClosed, match="is closed"):
        deployment.predict(image[None])
    with pytest.raises(ClassifierClosed, match="this deployment is closed; make another one"):
        deployment.reload()


@pytest.mark.parametrize("damage", ["gone", "altered", "no golden samples"])
def test_a_bundle_that_cannot_be_loaded_changes_nothing(damage: str, versions: list[Path], data: ImageData) -> None:
    with Deployment(versions[0], "cpu", threads=1) as deployment:
        current = deployment.current
        if damage == "gone":
            shutil.rmtree(versions[1])
        elif damage == "altered":
            (versions[1] / "model.onnx").write_bytes(b"other")
        else:
            (versions[1] / "golden.npz").unlink()
        with pytest.raises(ArtifactError):
            deployment.reload(versions[1])
        assert deployment.current is current
        assert deployment.health.ready
        assert deployment.predict(data.test.pixels[:1])[0]


def test_a_reload_without_a_name_takes_what_is_there_now(versions: list[Path]) -> None:
    with Deployment(versions[0], "cpu", threads=1) as deployment:
        first = deployment.info["digest"]
        assert deployment.reload()
        assert deployment.info["digest"] == first
        shutil.rmtree(versions[0])
        shutil.copytree(versions[1], versions[0])
        assert deployment.reload()
        assert deployment.info["digest"] != first
        assert deployment.metrics.requests == 0


def test_methods_are_those_of_a_classifier() -> None:
    for name in ("predict", "logits", "embed", "explain", "exemplars", "reject_scores", "submit", "explain_async"):
        ours, theirs = getattr(Deployment, name), getattr(Classifier, name)
        assert ours.__doc__ == theirs.__doc__
        assert asyncio.iscoroutinefunction(ours) == asyncio.iscoroutinefunction(theirs)
    names = {name for name in vars(Classifier) if not name.startswith("_")} - {"load"}
    assert names <= set(dir(Deployment))


def test_what_a_version_has_counted_is_kept_when_it_is_exchanged(versions: list[Path], data: ImageData) -> None:
    def counted(deployment: Deployment) -> dict[str, tuple[int, int, int]]:
        found = deployment.metrics_by_version
        return {one.version: (one.requests, one.request_seconds.count, one.failures["InputError"]) for one in found}

    def ask(deployment: Deployment) -> None:
        deployment.predict(data.test.pixels[:3])
        with pytest.raises(InputError):
            deployment.predict([b"no image"])

    with Deployment(versions[0], "cpu", threads=1) as deployment:
        ask(deployment)
        first = deployment.info["version"]
        assert first == deployment.info["digest"][:12]
        deployment.reload()
        ask(deployment)
        assert counted(deployment) == {first: (4, 2, 2)}
        deployment.reload(versions[1])
        ask(deployment)
        ask(deployment)
        second = deployment.info["version"]
        assert list(counted(deployment).items()) == [(first, (4, 2, 2)), (second, (4, 2, 2))]
        deployment.reload(versions[0])
        assert list(counted(deployment).items()) == [(second, (4, 2, 2)), (first, (4, 2, 2))]


def test_versions_that_serve_no_more_are_forgotten_in_the_end(versions: list[Path]) -> None:
    with Deployment(versions[0], "cpu", threads=1) as deployment:
        seen = [deployment.info["version"]]
        for number in range(8):
            manifest, _ = Manifest.read(versions[1])
            Manifest(**{**vars(manifest), "class_names": (f"a{number}", "b")}).write(versions[1])
            deployment.reload(versions[1])
            seen.append(deployment.info["version"])
        assert [one.version for one in deployment.metrics_by_version] == seen[-5:]


def test_monitoring_sees_the_versions_apart_and_the_one_that_serves(versions: list[Path], data: ImageData) -> None:
    with Deployment(versions[0], "cpu", threads=1) as deployment:
        deployment.predict(data.test.pixels[:2])
        deployment.reload(versions[1])
        text = prometheus_text(digits=deployment)
        first, second = (one.version for one in deployment.metrics_by_version)
    assert f'tnn_images_total{{model="digits",version="{first}"}} 2.0' in text
    assert f'tnn_images_total{{model="digits",version="{second}"}} 0.0' in text
    assert [line for line in text.splitlines() if line.startswith("tnn_ready{")] == [
        f'tnn_ready{{model="digits",version="{second}"}} 1.0'
    ]
    (about,) = [line for line in text.splitlines() if line.startswith("tnn_bundle_info{")]
    assert 'head="linear"' in about
    assert f'digest="{deployment.info["digest"]}"' in about
