"""Small real things that the tests share: images, a trained checkpoint and a bundle of each head."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import Tensor, nn
from torch.onnx._internal._lazy_import import onnxscript_apis

from tnn_export import ExportOptions, export_bundle
from tnn_export.proof import running
from tnn_runtime import Deployment
from tnn_runtime.bundle.manifest import SCHEMA_VERSION, BatchBounds
from tnn_runtime.server.models import Model, Models
from tnn_train import ImageData, ModelConfig, TrainConfig, TverskyConfig, load_data, train
from tnn_train.model.backbones import BACKBONES
from tnn_train.training.loop import TrainResult

torch.set_num_threads(1)
# Also in the processes that tests start: threads of two of them on the same cores spend most of their time waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The first backward pass starts a thread if an export came before it, and then no process that learns can be forked.
torch.ones((), requires_grad=True).backward()

# By default an example may take 200 ms, and drawing some of them a second: a busy machine takes longer.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs so; programs that the tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the collector of garbage off the two million objects of the libraries and the tests, which all stay."""
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return result


class TinyNet(nn.Module):
    """A backbone small enough for tests, with the parts that `build_model` exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3)
        self.maxpool: nn.Module = nn.Identity()
        self.conv2 = nn.Conv2d(64, 24, 3, stride=2)
        self.norm: nn.Module = nn.BatchNorm2d(24)
        self.fc: nn.Module = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.conv1(x)))
        return self.fc(torch.relu(self.norm(self.conv2(x))).mean((2, 3)))


class PlainNet(TinyNet):
    """Without batch norm, whose statistics depend on how a batch is shared out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


BACKBONES.update({"tiny": TinyNet, "plain": PlainNet})

FIXTURES = Path(__file__).parent / "fixtures"
RECIPE = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2, augment=())


run_freshly = running._ended


def run_forked(program: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Run a program of the export as it does, but for the seconds that importing torch takes."""
    return forked.run(forked.python, *map(str, program[1:]))


running._ended = run_forked
# Each export asks for the same list of operators, and making it takes half a second.
onnxscript_apis.get_torchlib_ops = cache(onnxscript_apis.get_torchlib_ops)
# No test is about a power failure, and a disk takes milliseconds to have written each file.
os.fsync = lambda descriptor: None

Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)`` returns what ``make(folder)`` did, made by the first worker of a run that asks for it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        folder, made = shared / name, shared / f"{name}.pickle"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                made.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(made.read_bytes())

    return get


@pytest.fixture
def fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes in which the export proves artifacts are those of every day, with nothing imported."""
    monkeypatch.setattr(running, "_ended", run_freshly)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets."""
    if "TNN_DATA" not in os.environ:
        pytest.skip("TNN_DATA names no folder with real data")
    return Path(os.environ["TNN_DATA"])


def draw_photos(folder: Path, count: int = 20) -> Path:
    """Write ``cat/N.png`` (a horizontal bar) and ``dog/N.png`` (a vertical bar), noisy, 20 x 16 pixels."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = random.integers(0, 90, (16, 20, 3), dtype=np.uint8)
            place = int(random.integers(3, 11))
            if name == "cat":
                image[place : place + 3] += 150
            else:
                image[:, place : place + 3] += 150
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def photos(once: Once) -> Path:
    """A folder of two classes of pictures; read only."""
    return once("photos", draw_photos)


@pytest.fixture(scope="session")
def data(photos: Path) -> ImageData:
    """The pictures of `photos`, split."""
    return load_data(photos)


def draw_uneven(folder: Path) -> Path:
    """Write the photos as ``train/``, with 16 cats and 6 dogs, and ``val/`` and ``test/``, with two of each."""
    draw_photos(folder / "all")
    for name, count in (("cat", 16), ("dog", 6)):
        places = {"train": range(count), "val": range(16, 18), "test": range(18, 20)}
        for part, numbers in places.items():
            (folder / part / name).mkdir(parents=True)
            for number in numbers:
                (folder / "all" / name / f"{number}.png").rename(folder / part / name / f"{number}.png")
    shutil.rmtree(folder / "all")
    return folder


@pytest.fixture(scope="session")
def uneven(once: Once) -> Path:
    """A folder of pictures whose classes differ in size; read only."""
    return once("uneven", draw_uneven)


@pytest.fixture(scope="session")
def runs(data: ImageData, once: Once) -> dict[str, TrainResult]:
    """A trained model of each head, and one whose measure jumps at the membership boundary; read only."""
    forms = {
        "tversky": ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=16)),
        "jumping": ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=16, difference="ignorematch")),
        "ratio": ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=16, model="ratio")),
        "linear": ModelConfig(backbone="tiny", head="linear"),
    }
    return once("runs", lambda folder: {name: train(data, folder / name, form, RECIPE) for name, form in forms.items()})


@pytest.fixture(scope="session")
def bundles(runs: dict[str, TrainResult], once: Once) -> dict[str, Path]:
    """The bundle of each run; read only."""

    def make(folder: Path) -> dict[str, Path]:
        for name, run in runs.items():
            export_bundle(run.best, folder / name)
        return {name: folder / name for name in runs}

    return once("bundles", make)


MAPPED = {"tversky": ("onnx", "torchscript", "pt2"), "ratio": ("onnx",), "linear": ("onnx", "torchscript")}
"""The runs that are exported with feature maps, with their formats."""


@pytest.fixture(scope="session")
def mapped(runs: dict[str, TrainResult], once: Once) -> dict[str, Path]:
    """Bundles with feature maps; read only."""

    def make(folder: Path) -> dict[str, Path]:
        for name, formats in MAPPED.items():
            options = ExportOptions(formats, outputs=("feature_maps",), batch=BatchBounds(1, 16))
            export_bundle(runs[name].best, folder / name, options=options)
        return {name: folder / name for name in MAPPED}

    return once("mapped", make)


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the Tversky bundle, to be damaged."""
    return Path(shutil.copytree(bundles["tversky"], tmp_path / "bundle"))


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """A copy of the released bundle of the newest schema, to be damaged; there at once."""
    return Path(shutil.copytree(FIXTURES / f"bundle-v{SCHEMA_VERSION}", tmp_path / "small"))


@pytest.fixture
def checkpoint(runs: dict[str, TrainResult], tmp_path: Path) -> Path:
    """A copy of a Tversky checkpoint, to be damaged."""
    return Path(shutil.copytree(runs["tversky"].folder / "last", tmp_path / "last"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torchvision keeps its weights, empty, on a machine without internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def no_internet(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_internet)
    return folder


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """A bundle with a Tversky head, two classes, a threshold and exemplars, for images of 8 x 8 pixels."""
    with Deployment(FIXTURES / "bundle-v5", "cpu", threads=1) as deployment:
        yield deployment


@pytest.fixture
def models(deployment: Deployment) -> Models:
    """That bundle alone, as ``p``."""
    return Models([Model("p", 1, deployment)])
