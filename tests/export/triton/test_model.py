"""The steps around the network, run as Triton's Python backend runs them, but by the Python of the tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as triton
from conftest import FIXTURES
from google.protobuf import json_format, text_format
from image_files import encode
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tnn_export.triton.options import TritonOptions
from tnn_export.triton.repository import export_triton
from tnn_runtime import Classifier, Manifest

BUNDLE = FIXTURES / "bundle-v5"
GOOD, BAD = encode(Image.new("RGB", (9, 7), (200, 30, 5))), b"no image"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    export_triton(BUNDLE, folder, name="photos", options=TritonOptions(top_k=1))
    return folder


def config_of(model: Path) -> str:
    """Return a configuration as Triton gives it to a step: as JSON, with the names of its fields."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
    return json_format.MessageToJson(config, preserving_proto_field_name=True)


def step(model: Path) -> Any:
    """Return a step that is ready, as the module that Triton imports."""
    before = sys.path.copy()
    spec = importlib.util.spec_from_file_location("step", model / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    made = module.TritonPythonModel()
    made.initialize({"model_config": config_of(model)})
    return made


def files(*contents: bytes) -> Any:
    return triton.Request({"files": np.array([[one] for one in contents], object)}, ["images"])


def logits(*rows: float) -> Any:
    values = np.array([[row, 0] for row in rows], np.float32)
    return triton.Request({"logits": values, "embedding": np.zeros((len(rows), 24), np.float32)}, ["labels", "reject"])


def told(response: Any) -> str:
    """Return what became of a request: its shapes, or its error."""
    if response.error is None:
        return " ".join(f"{one.name} {list(one.values.shape)}" for one in response.output_tensors)
    return f"{response.error.code} {response.error.message.split(';')[0]}"


@pytest.mark.parametrize(
    ("model", "requests", "expected"),
    [
        ("decode", [files(GOOD)], ["images [1, 8, 8, 3]"]),
        (
            "decode",
            [files(GOOD), files(BAD), files(GOOD, GOOD)],
            ["images [1, 8, 8, 3]", "INVALID_ARG files[0]: the image", "images [2, 8, 8, 3]"],
        ),
        ("decode", [files(GOOD, GOOD[:40]), files(GOOD)], ["INVALID_ARG files[1]: the image", "images [1, 8, 8, 3]"]),
        ("decode", [files(b""), files(b"\xff\xd8\xff")], ["INVALID_ARG files[0]: the image"] * 2),
        ("decode", [triton.Request({}, []), files(GOOD)], ["INTERNAL KeyError: 'files'", "images [1, 8, 8, 3]"]),
        ("rank", [logits(3), logits(-3, 3)], ["labels [1, 1] reject [1, 1]", "labels [2, 1] reject [2, 1]"]),
        (
            "rank",
            [logits(1, np.nan), logits(1), logits(np.inf)],
            ["UNAVAILABLE images[1]: the model", "labels [1, 1] reject [1, 1]", "UNAVAILABLE images[0]: the model"],
        ),
        ("rank", [triton.Request({}, []), logits(1)], ["INTERNAL KeyError: 'logits'", "labels [1, 1] reject [1, 1]"]),
    ],
)
def test_each_request_gets_its_own_answer_or_error(
    model: str, requests: list[Any], expected: list[str], repository: Path
) -> None:
    found = step(repository / f"photos_{model}").execute(requests)
    assert len(found) == len(expected)
    for response, start in zip(found, expected, strict=True):
        assert told(response).startswith(start)


def test_an_environment_variable_of_the_limits_counts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNN_MAX_PIXELS", "60")
    assert "9x7 = 63 pixels" in told(step(repository / "photos_decode").execute([files(GOOD)])[0])


@pytest.mark.parametrize("version", [(3, 8, 10), (3, 10, 12), (3, 10, 99)])
def test_an_older_python_is_told_what_to_use(
    version: tuple[int, ...], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(ImportError, match=r"needs Python 3\.11 or newer, and this Triton has .*; use Triton 2\.53 "):
        step(repository / "photos_rank")


def pictures() -> list[bytes]:
    """Return files of every mode and format, turned, transparent, narrow and large ones."""
    random = np.random.default_rng(0)
    found = []
    for number, (mode, style, shape) in enumerate(
        [
            ("RGB", "JPEG", (40, 31, 3)),
            ("L", "JPEG", (9, 64)),
            ("RGBA", "PNG", (17, 23, 4)),
            ("LA", "PNG", (12, 5, 2)),
            ("P", "PNG", (21, 22)),
            ("I;16", "PNG", (13, 19)),
            ("RGB", "WEBP", (33, 15, 3)),
            ("RGB", "BMP", (8, 8, 3)),
            ("1", "TIFF", (11, 29)),
            ("RGB", "JPEG", (200, 3, 3)),
        ]
    ):
        kind = np.uint16 if mode == "I;16" else np.uint8
        values = random.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
        image = Image.fromarray(values).convert(mode) if mode in ("P", "1") else Image.fromarray(values, None)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        options = {"exif": exif} if style in ("JPEG", "PNG", "WEBP") else {}
        found.append(encode(image, style, **options))
    return found


PROGRAM = """
import sys
import numpy as np
folder, helpers = sys.argv[1:]
for name in ("torch", "onnx", "onnxruntime", "tnn_train", "tnn_export", "tritonclient", "cryptography"):
    sys.modules[name] = None
sys.path += [folder + "/1", helpers]
import model, tnn_runtime, triton_python_backend_utils as triton
assert tnn_runtime.__file__.startswith(folder), tnn_runtime.__file__
step = model.TritonPythonModel()
step.initialize({"model_config": open("config.json").read()})
with np.load("inputs.npz", allow_pickle=True) as inputs:
    (response,) = step.execute([triton.Request(dict(inputs), open("outputs.txt").read().split())])
assert response.error is None, response.error
np.savez("found.npz", **{one.name: one.values for one in response.output_tensors})
print(np.__version__)
"""


def pythons() -> list[Any]:
    """Return the Pythons to try: that of the tests, and that of a Triton, which has NumPy 1.26."""
    old = os.environ.get("TNN_TRITON")
    reason = "TNN_TRITON names no folder of a Triton, see tests/triton_server.py"
    return [
        pytest.param(sys.executable, "2.", id="numpy 2"),
        pytest.param(
            f"{old}/python/bin/python", "1.26", id="numpy 1.26", marks=[] if old else pytest.mark.skip(reason)
        ),
    ]


def run_step(python: str, model: Path, folder: Path, inputs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what a step gives for a request in a process of its own, and the version of its NumPy."""
    outputs = [output["name"] for output in json.loads(config_of(model))["output"]]
    (folder / "config.json").write_text(config_of(model))
    (folder / "outputs.txt").write_text(" ".join(outputs))
    np.savez(folder / "inputs.npz", **inputs)
    helpers = Path(triton.__file__).parent
    command = [python, "-I", "-c", PROGRAM, str(model), str(helpers)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "found.npz", allow_pickle=True) as found:
        return dict(found), result.stdout


@pytest.mark.parametrize(("python", "numpy"), pythons())
def test_the_steps_need_numpy_and_pillow_alone(python: str, numpy: str, repository: Path, tmp_path: Path) -> None:
    images = pictures()
    with Classifier.load(BUNDLE, "cpu") as classifier:
        expected = classifier.predict(images)
        given = {"logits": classifier.logits(images), "embedding": classifier.embed(images)}
        rejected = classifier.reject_scores(images) < classifier.info["reject"]["threshold"]
    preprocessing = Manifest.read(BUNDLE)[0].preprocessing
    encoded = np.array([[one] for one in images], object)
    decoded, version = run_step(python, repository / "photos_decode", tmp_path, {"files": encoded})
    assert version.startswith(numpy)
    assert np.array_equal(decoded["images"], preprocessing.batch(images))
    ranked, _ = run_step(python, repository / "photos_rank", tmp_path, given)
    assert [label.decode() for (label,) in ranked["labels"]] == [best[0].label for best in expected]
    assert np.allclose(ranked["scores"][:, 0], [best[0].score for best in expected], rtol=1e-6)
    assert np.array_equal(ranked["scores"][:, 0], ranked["probabilities"].max(1))
    assert ranked["reject"][:, 0].tolist() == rejected.tolist()
    for name, values in given.items():
        assert np.array_equal(ranked[name], values)
