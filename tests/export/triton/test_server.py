"""A real Triton serves what is written: see ``tests/triton_server.py`` for how to get one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from conftest import FIXTURES
from image_files import encode
from PIL import Image
from triton_server import Server, running
from tritonclient.utils import InferenceServerException

from tnn_export.triton.options import TritonOptions
from tnn_export.triton.repository import export_triton
from tnn_runtime import Classifier

pytestmark = pytest.mark.skipif(
    "TNN_TRITON" not in os.environ, reason="TNN_TRITON names no folder of a Triton, see tests/triton_server.py"
)

PAGE = Path(__file__).parents[3] / "docs" / "exporting.md"
BUNDLES = {"photos": FIXTURES / "bundle-v5", "older": FIXTURES / "bundle-v1"}
ANSWERS = ("labels", "scores", "logits", "probabilities", "embedding")
REJECT = "reject"
CLIENTS: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def triton() -> Path:
    return Path(os.environ["TNN_TRITON"])


def write(repository: Path) -> Path:
    """Write two bundles into a repository, one of them as version 3 and with one label."""
    export_triton(BUNDLES["photos"], repository, name="photos")
    export_triton(BUNDLES["older"], repository, name="older", version=3, options=TritonOptions(top_k=1, instances=2))
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("triton")
    # Where it runs is the first place that its Python imports from, if a model does not see to that.
    (folder / "tnn_runtime.py").write_text("raise ImportError('this is not the one beside the model')")
    with running(triton(), write(folder / "repository"), folder / "log.txt") as server:
        yield server


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    with CLIENTS[request.param].InferenceServerClient(getattr(server, request.param)) as client:
        yield client


def pictures(count: int = 12) -> list[bytes]:
    random = np.random.default_rng(7)
    styles = ("PNG", "JPEG", "WEBP", "BMP")
    sizes = random.integers(5, 60, (count, 2))
    return [
        encode(Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)), styles[number % len(styles)])
        for number, size in enumerate(sizes)
    ]


def module_of(client: Any) -> Any:
    return tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http


def given(module: Any, name: str, values: np.ndarray, datatype: str) -> list[Any]:
    """Return the one input of a request."""
    tensor = module.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def files(module: Any, contents: list[bytes]) -> list[Any]:
    return given(module, "files", np.array([[content] for content in contents], object), "BYTES")


def infer(client: Any, model: str, contents: list[bytes], *outputs: str, **options: Any) -> dict[str, np.ndarray]:
    """Return what a model answers; all of its outputs if none is named."""
    module = module_of(client)
    wanted = [module.InferRequestedOutput(name) for name in outputs] or None
    found = client.infer(model, files(module, contents), outputs=wanted, **options)
    response = found.get_response()
    told = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [one["name"] if isinstance(one, dict) else one.name for one in told]
    return {name: found.as_numpy(name) for name in names}


@pytest.mark.parametrize("model", BUNDLES)
def test_it_answers_as_the_classifier(model: str, client: Any) -> None:
    images = pictures()
    found = infer(client, model, images)
    with Classifier.load(BUNDLES[model], "cpu") as classifier:
        expected = classifier.predict(images)
        logits, embedding = classifier.logits(images), classifier.embed(images)
        can_reject = "reject" in classifier.abilities
        rejected = [one.rejected for one in classifier.predict(images, reject=True)] if can_reject else None
    count = found["labels"].shape[1]
    assert count == (2 if model == "photos" else 1)
    assert [[label.decode() for label in row] for row in found["labels"]] == [
        [one.label for one in best[:count]] for best in expected
    ]
    assert np.allclose(found["scores"], [[one.score for one in best[:count]] for best in expected], atol=1e-6)
    assert np.allclose(found["logits"], logits, atol=1e-6)
    assert np.allclose(found["embedding"], embedding, atol=1e-6)
    assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-6)
    assert sorted(found) == sorted([*ANSWERS, *(["reject"] if rejected else [])])
    assert rejected is None or found["reject"][:, 0].tolist() == rejected


@pytest.mark.parametrize(
    "outputs", [names for count in (1, 2, 5) for names in combinations((*ANSWERS, REJECT), count)], ids="-".join
)
def test_a_client_gets_the_outputs_that_it_asks_for(outputs: tuple[str, ...], server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        images = pictures(3)
        whole, found = infer(client, "photos", images), infer(client, "photos", images, *outputs)
    assert sorted(found) == sorted(outputs)
    for name, values in found.items():
        assert np.array_equal(values, whole[name])


@pytest.mark.parametrize("model", BUNDLES)
def test_classes_have_their_names(model: str, server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        images = pictures(4)
        labels = infer(client, model, images, "labels")["labels"][:, 0]
        for output in ("logits", "probabilities"):
            wanted = tritonclient.http.InferRequestedOutput(output, class_count=1)
            best = client.infer(model, files(tritonclient.http, images), outputs=[wanted]).as_numpy(output)
            assert [one.split(b":")[2] for one in best.ravel()] == labels.tolist()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([b"no image"], "files[0]: "),
        ([pictures(2)[1][:60]], "files[0]: "),
        ([pictures(1)[0], b"\xff\xd8\xff", pictures(1)[0]], "files[1]: "),
        ([b""], "files[0]: "),
    ],
)
def test_a_bad_file_is_an_error_and_the_next_request_works(contents: list[bytes], message: str, client: Any) -> None:
    with pytest.raises(InferenceServerException) as raised:
        infer(client, "photos", contents)
    assert raised.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert message in raised.value.message()
    assert len(infer(client, "photos", pictures(1))["labels"]) == 1


def test_bad_files_are_no_matter_of_requests_beside_them(server: Server) -> None:
    contents = [content for good in pictures(8) for content in (good, b"no image")]
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        alone = [infer(client, "photos", [content], "logits")["logits"] for content in contents[::2]]
    with tritonclient.http.InferenceServerClient(server.http, concurrency=len(contents)) as client:
        waiting = [client.async_infer("photos", files(tritonclient.http, [content])) for content in contents]
        for number, request in enumerate(waiting):
            if number % 2:
                with pytest.raises(InferenceServerException, match=r"files\[0\]"):
                    request.get_result()
            else:
                assert np.allclose(request.get_result().as_numpy("logits"), alone[number // 2], atol=1e-6)


@pytest.mark.parametrize(("model", "version", "other"), [("photos", "1", "2"), ("older", "3", "1")])
def test_models_have_their_versions(model: str, version: str, other: str, client: Any) -> None:
    for name in (model, f"{model}_decode", f"{model}_onnx", f"{model}_rank"):
        assert client.is_model_ready(name, version)
        assert not client.is_model_ready(name, other)
    assert len(infer(client, model, pictures(1), "labels", model_version=version)["labels"]) == 1
    with pytest.raises(InferenceServerException):
        infer(client, model, pictures(1), "labels", model_version=other)


def test_the_network_takes_pixels(client: Any) -> None:
    images = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), np.uint8)
    found = client.infer("photos_onnx", given(module_of(client), "images", images, "UINT8"))
    with Classifier.load(BUNDLES["photos"], "cpu") as classifier:
        assert np.allclose(found.as_numpy("logits"), classifier.logits(images), atol=1e-6)
    assert found.as_numpy("feature_maps").shape == (5, 4, 3, 3)


def test_the_python_of_the_page_runs(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(import numpy.*?tritonclient.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    exec(program.replace("127.0.0.1:8000", server.http), {})
    assert re.fullmatch(r"\[\[b'(cat|dog)' b'(cat|dog)'\]\] \[\[\S+ +\S+\]\]\n", capsys.readouterr().out)


BROKEN = {
    "another name": ("photos", 'name: "photos"', 'name: "other"', "directory name must equal model name"),
    "an unknown field": ("photos_onnx", "max_batch_size", "most_images", 'has no field named "most_images"'),
    "no such backend": ("photos_onnx", "onnxruntime", "no_such", "unable to find backend library"),
    "a step that is missing": ("photos", "photos_rank", "photos_sort", "not available or ambiguous: photos_sort"),
    "a step of another version": ("photos", "model_version: 1", "model_version: 2", "version 2 is not loaded"),
    "other dimensions": ("photos_rank", "dims: 24", "dims: 25", "network_embedding: inconsistent shape"),
    "another type": ("photos_decode", "TYPE_UINT8", "TYPE_FP32", "images: inconsistent data type"),
    "an output that nobody makes": ("photos", 'value: "labels"', 'value: "names"', "output 'labels' for ensemble"),
    "a version that is missing": ("photos_decode", "versions: 1", "versions: 7", "version 7 is specified for model"),
    "an output that is missing": ("photos_decode", 'name: "images"', 'name: "pixels"', "non-existing output images"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_configuration_is_refused(fault: str, tmp_path: Path) -> None:
    model, before, after, reason = BROKEN[fault]
    repository = tmp_path / "repository"
    export_triton(BUNDLES["photos"], repository, name="photos")
    config = repository / model / "config.pbtxt"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    assert reason in refusal(repository, tmp_path / "log.txt")


def refusal(repository: Path, log: Path) -> str:
    """Return what a Triton prints that does not start."""
    with pytest.raises(AssertionError, match="Triton refuses") as raised, running(triton(), repository, log):
        pass
    return str(raised.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("manifest.json", "has schema_version None, expected an integer"),
        ("model.py", "has no attribute 'TritonPythonModel'"),
        ("tnn_runtime", "No module named 'tnn_runtime'"),
    ],
)
def test_a_damaged_step_is_refused(damage: str, reason: str, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export_triton(BUNDLES["photos"], repository, name="photos")
    path = repository / "photos_decode" / "1" / damage
    shutil.rmtree(path) if path.is_dir() else path.write_text("{}")
    assert reason in refusal(repository, tmp_path / "log.txt")
