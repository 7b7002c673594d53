"""Prototype classifiers of prosemble, in its archives: their answers are those of its own formulas."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet
from numpy.typing import NDArray
from oracles.lvq import ACTIVATIONS
from PIL import Image
from sklearn.datasets import load_digits

from tnn_export import export_bundle
from tnn_export.__main__ import main
from tnn_runtime import Classifier
from tnn_train import load_checkpoint

Arrays = dict[str, Any]
SIDE, CLASSES = 4, 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of three classes; read only."""
    folder, random = tmp_path_factory.mktemp("prosemble") / "pictures", np.random.default_rng(0)
    for name in "abc":
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def archive(path: Path, kind: str, arrays: Arrays, **settings: Any) -> Path:
    """Write an archive as ``save`` of prosemble 2.4 does."""
    about = {
        "schema_version": 1,
        "class_name": kind,
        "module": "prosemble.models",
        "hyperparams": {"n_prototypes_per_class": 1, "max_iter": 100, "lr": 0.01, **settings},
        "fitted_array_names": [name for name in arrays if not name.startswith("backbone_")],
        "quantized_dtype": None,
        "n_iter_": 100,
        "loss_": -0.3,
        "n_classes_": CLASSES,
        "opt_state_n_leaves": 1,
    }
    np.savez_compressed(path, __metadata__=np.array(json.dumps(about)), __opt_state_0__=np.zeros(3), **arrays)
    return path


def made(kind: str, folder: Path, inputs: int = SIDE * SIDE) -> tuple[Path, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Write a random model; return its file, and what it answers to inputs ``[N, D]`` by its definition."""
    random = np.random.default_rng(1)
    labels = np.array([2, 0, 1, 0] if kind != "GLVQ" else [2, 2, 1, 0, 1, 0], np.int32)
    size = {"LVQMLN": 2}.get(kind, inputs)
    prototypes = random.normal(0.5, 0.3, (len(labels), size)).astype(np.float32)
    arrays: Arrays = {"prototypes_": prototypes, "prototype_labels_": labels}
    settings: dict[str, Any] = {}
    omega, layers = np.eye(size), []
    if kind == "GMLVQ":
        omega = arrays["omega_"] = random.normal(size=(size, 5)).astype(np.float32)
    if kind == "LVQMLN":
        settings = {"hidden_sizes": [7], "latent_dim": 2, "activation": "selu"}
        for place, (before, after) in enumerate(((inputs, 7), (7, 2))):
            weight, bias = random.normal(size=(before, after)) / 3, random.normal(size=after)
            layers.append((weight.astype(np.float32), bias.astype(np.float32)))
            arrays |= {f"backbone_{place}_weight": layers[-1][0], f"backbone_{place}_bias": layers[-1][1]}

    def answers(x: NDArray[Any]) -> NDArray[Any]:
        x = x.astype(np.float64)
        for weight, bias in layers:
            x = ACTIVATIONS["selu"](x @ weight + bias)
        distances = ((x[:, None] - prototypes) @ omega).__pow__(2).sum(2)
        return labels[distances.argmin(1)]

    return archive(folder / f"{kind}.npz", kind, arrays, **settings), answers


def arguments(file: Path, images: Path, *more: str) -> list[str]:
    words = f"import {file} --from prosemble --backbone pixels --image-size {SIDE} --mean 0 --std 1 --images {images}"
    return [*words.split(), "-o", str(file.parent / "out"), *more]


@pytest.mark.parametrize("kind", ["LVQ1", "GLVQ", "GMLVQ", "LVQMLN"])
def test_an_imported_model_gives_its_own_answers(kind: str, pictures: Path, tmp_path: Path) -> None:
    file, answers = made(kind, tmp_path)
    assert main(arguments(file, pictures)) == 0
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.training["imported"]["model"] == kind
    export_bundle(checkpoint, tmp_path / "bundle", ("onnx",))
    images = np.random.default_rng(2).integers(0, 256, (200, SIDE, SIDE, 1), np.uint8)
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        found = classifier.logits(images).argmax(1)
        assert classifier.explain(images[:1])[0][0].certificate is not None
    expected = answers(images.reshape(len(images), -1) / 255)
    assert len(set(expected.tolist())) > 1
    np.testing.assert_array_equal(found, expected)


def test_scores_are_the_softmax_of_minus_the_smallest_distances(pictures: Path, tmp_path: Path) -> None:
    file, _ = made("GLVQ", tmp_path)
    assert main(arguments(file, pictures, "--logit-scale", "2")) == 0
    head = load_checkpoint(tmp_path / "out").model.head
    x = torch.rand(5, SIDE * SIDE)
    with torch.no_grad():
        nearest = head.distances(x).view(5, CLASSES, 2).amin(2)
        torch.testing.assert_close(head(x).softmax(1), (-2 * nearest).softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", ["first", "last"])
@pytest.mark.parametrize("kind", ["GLVQ", "GMLVQ", "LVQMLN"])
def test_rgb_pixels_in_either_order(kind: str, channels: str, photos: Path, tmp_path: Path) -> None:
    file, answers = made(kind, tmp_path, 3 * SIDE * SIDE)
    words = arguments(file, photos, "--channels", channels, "--mean", "0", "0", "0", "--std", "1", "1", "1")
    names = tmp_path / "names.txt"
    names.write_text("x\ny\nz\n")
    assert main([*words, "--class-names", str(names)]) == 0
    model = load_checkpoint(tmp_path / "out").model
    images = np.random.default_rng(2).random((200, SIDE, SIDE, 3), np.float32)
    planes = images.transpose(0, 3, 1, 2)
    with torch.no_grad():
        found = model(torch.from_numpy(planes.copy())).argmax(1).numpy()
    flat = planes if channels == "first" else images
    np.testing.assert_array_equal(found, answers(flat.reshape(len(images), -1)))


def test_a_model_of_embeddings_takes_the_weights_of_its_backbone(pictures: Path, tmp_path: Path) -> None:
    file, answers = made("GMLVQ", tmp_path, 24)
    torch.manual_seed(0)
    net = TinyNet().eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    words = [
        "import",
        str(file),
        "--from",
        "prosemble",
        "--backbone",
        "tiny",
        "--image-size",
        "16",
        "--stem",
        "imagenet",
    ]
    words += ["--images", str(pictures), "-o", str(tmp_path / "out")]
    assert main([*words, "--backbone-weights", str(tmp_path / "net.pth")]) == 0
    model = load_checkpoint(tmp_path / "out").model
    x = torch.randn(40, 3, 16, 16)
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        np.testing.assert_array_equal(model(x).argmax(1).numpy(), answers(net(x).numpy()))


def broken(change: Callable[[Arrays], Any], kind: str = "GMLVQ") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        file, _ = made(kind, path.parent)
        with np.load(file) as found:
            arrays = dict(found)
        change(arrays)
        file.unlink()
        np.savez(path, **arrays)

    return write


def about(change: Callable[[Arrays], Any], kind: str = "GMLVQ") -> Callable[[Path], None]:
    def changed(arrays: Arrays) -> None:
        found = json.loads(str(arrays["__metadata__"]))
        change(found)
        arrays["__metadata__"] = np.array(json.dumps(found))

    return broken(changed, kind)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist; expected an archive that prosemble saved"),
        (lambda path: path.write_bytes(b"PK no archive"), "cannot be read"),
        (lambda path: np.savez(path, x=np.ones(3)), "expected the arrays __metadata__"),
        (lambda path: np.savez(path, __metadata__=np.array("{")), "is no archive that prosemble saved"),
        (lambda path: np.savez(path, __metadata__=np.array("[1]")), "is no archive that prosemble saved"),
        (lambda path: np.savez(path, __metadata__=np.array([{}], dtype=object)), "cannot be read"),
        (about(lambda found: found.update(class_name="GRLVQ")), "its predict leaves out the relevances"),
        (about(lambda found: found.update(class_name="SOM")), "a model of the kind 'SOM'; LVQ1, LVQ21, GLVQ"),
        (about(lambda found: found.update(quantized_dtype="int8")), "is quantised (int8); save the model without"),
        (broken(lambda arrays: arrays.pop("omega_")), "expected the arrays prototypes_, prototype_labels_, omega_"),
        (broken(lambda arrays: arrays.update(omega_=np.ones((3, 2)))), "has arrays that do not fit together"),
        (broken(lambda arrays: arrays["prototypes_"].__setitem__(0, np.nan)), "values that are no finite numbers"),
        (broken(lambda arrays: arrays.pop("backbone_1_bias"), "LVQMLN"), "saves an LVQMLN without its network"),
        (
            broken(lambda arrays: arrays.update(backbone_1_weight=np.ones((6, 2))), "LVQMLN"),
            "has arrays that do not fit together",
        ),
        (
            about(lambda found: found["hyperparams"].update(activation="gelu"), "LVQMLN"),
            "has the activation 'gelu'; sigmoid, relu",
        ),
    ],
)
def test_archives_that_cannot_be_used(
    write: Callable[[Path], Any], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.npz"
    write(file)
    refused(arguments(file, pictures), message, capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--image-size", "5"), "takes inputs of 16 values, and backbone pixels gives 25 of images of 5x5 pixels"),
        (("--backbone", "resnet18"), "has no weights of backbone resnet18; give the file"),
        (("--backbone", "pixel"), "unknown backbone 'pixel'; the nearest are pixels"),
        (("--backbone-weights", "net.pth"), "backbone pixels has no weights"),
        (("--channels", "last"), "leave it out for grey images"),
        (("--mean", "0", "0", "0", "--std", "1", "1", "1"), "got channels None for RGB pixels; say with --channels"),
        (("--prefix", "head"), "got the prefix 'head'"),
        (("--alpha", "2"), "prosemble has no option 'alpha'; it has channels"),
        (("--logit-scale", "-1"), "logit_scale is -1.0"),
        (("--from", "prosembel"), "unknown source 'prosembel'"),
    ],
)
def test_options_that_do_not_fit(
    more: tuple[str, ...], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = made("GLVQ", tmp_path)
    refused(arguments(file, pictures, *more), message, capsys)


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not Path(words[words.index("-o") + 1]).exists()


_TRAIN = """
import sys
import numpy as np
from prosemble.models import GLVQ, GMLVQ, LVQ1, LVQMLN

folder, x, y = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
models = [LVQ1(max_iter=20), GLVQ(n_prototypes_per_class=2), GMLVQ(latent_dim=20)]
models.append(LVQMLN(hidden_sizes=[16], latent_dim=8))
for model in models:
    name = type(model).__name__
    model.fit(x[:1200], y[:1200])
    model.save(f"{folder}/{name}.npz")
    if name == "LVQMLN":
        arrays = dict(np.load(f"{folder}/{name}.npz"))
        for place, (weight, bias) in enumerate(model.backbone_params_):
            arrays |= {f"backbone_{place}_weight": weight, f"backbone_{place}_bias": bias}
        np.savez(f"{folder}/{name}.npz", **arrays)
    np.save(f"{folder}/{name}.npy", np.asarray(model.predict(x)))
"""


@pytest.mark.slow
def test_models_of_the_package_itself_give_its_answers(tmp_path: Path) -> None:
    python = os.environ.get("TNN_PROSEMBLE")
    if python is None:
        pytest.skip("TNN_PROSEMBLE names no Python with prosemble, see docs/results/prosemble.md")
    digits = load_digits()
    x = digits.images / 16
    np.save(tmp_path / "x.npy", x.reshape(len(x), -1))
    np.save(tmp_path / "y.npy", digits.target)
    images = np.round(255 * x)[..., None].astype(np.uint8)
    for number in range(100):
        folder = tmp_path / "images" / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, :, :, 0]).save(folder / f"{number}.png")
    subprocess.run([python, "-c", _TRAIN, tmp_path, tmp_path / "x.npy", tmp_path / "y.npy"], check=True)
    for kind in ("LVQ1", "GLVQ", "GMLVQ", "LVQMLN"):
        words = arguments(tmp_path / f"{kind}.npz", tmp_path / "images", "--image-size", "8", "--overwrite")
        assert main(words) == 0
        model = load_checkpoint(tmp_path / "out").model
        with torch.no_grad():
            found = model(torch.from_numpy(x[:, None]).float()).argmax(1).numpy()
        np.testing.assert_array_equal(found, np.load(tmp_path / f"{kind}.npy"))
