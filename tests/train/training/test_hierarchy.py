"""The loss of the parents against its definition, and a training on folders in folders up to the server's answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE, draw_photos
from oracles.hierarchy import hierarchy_loss

from tnn_export.__main__ import main as export
from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main as runtime
from tnn_runtime.images.folders import read_image_folder
from tnn_train import ModelConfig, TrainConfig, load_data, train
from tnn_train.__main__ import main
from tnn_train.errors import DataError
from tnn_train.training.hierarchy import HierarchyLoss

NAMES = ("animal/cat/kitten", "vehicle/car", "animal/dog", "animal/cat/adult", "vehicle/truck/big")


@pytest.mark.parametrize("is_blended", [False, True])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0, 0.25)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_the_loss_is_its_definition(
    is_blended: bool, weights: tuple[float, ...] | None, smoothing: float, scale: float
) -> None:
    random = np.random.default_rng(0)
    logits, labels = scale * random.normal(size=(7, 5)), random.integers(0, 5, 7)
    shares = random.dirichlet(np.ones(5), 7) if is_blended else np.eye(5)[labels]
    weight = np.ones(5) if weights is None else np.array(weights)
    # A softmax in float64 loses what is below 1e-300, and with it the logarithm of the definition.
    expected = hierarchy_loss(NAMES, np.clip(logits, -300, 300), shares, weight, smoothing, is_blended=is_blended)
    given = torch.from_numpy(np.clip(logits, -300, 300)).float().requires_grad_()
    found = HierarchyLoss(NAMES, 0.5, torch.device("cpu"))(
        given,
        torch.from_numpy(shares).float() if is_blended else torch.from_numpy(labels),
        None if weights is None else torch.tensor(weights),
        smoothing,
    )
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-4)
    found.backward()
    assert given.grad is not None
    assert torch.isfinite(given.grad).all()


def test_gradients_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    loss = HierarchyLoss(NAMES, 1.0, torch.device("cpu"))
    loss._members = [members.double() for members in loss._members]
    assert torch.autograd.gradcheck(lambda z: loss(z, torch.tensor([0, 1, 4]), None, 0.1), (logits,))


def test_classes_that_are_alike_to_the_parents_cost_nothing_more() -> None:
    loss = HierarchyLoss(("a/x", "a/y", "b/z"), 1.0, torch.device("cpu"))
    near, far = torch.tensor([[0.0, 20.0, 0.0]]), torch.tensor([[0.0, 0.0, 20.0]])
    assert float(loss(near, torch.tensor([0]), None, 0.0)) < 1e-6
    assert float(loss(far, torch.tensor([0]), None, 0.0)) > 15


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``animal/cat``, ``animal/dog`` and ``thing/frame``; read only."""
    folder = tmp_path_factory.mktemp("nested") / "photos"
    draw_photos(folder / "animal")
    (folder / "thing" / "frame").mkdir(parents=True)
    for place, path in enumerate(sorted((folder / "animal" / "dog").iterdir())):
        if place % 2:
            path.rename(folder / "thing" / "frame" / path.name)
    return folder


def test_folders_in_folders_are_classes_if_it_is_asked(nested: Path) -> None:
    assert load_data(nested).class_names == ("animal", "thing")
    assert load_data(nested, nested_classes=True).class_names == ("animal/cat", "animal/dog", "thing/frame")


def test_split_folders_may_be_nested(nested: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(nested, tmp_path / "all" / split)
    found = read_image_folder(tmp_path / "all", nested=True)
    assert set(found.parts) == {"train", "val", "test"}
    assert found.class_names == ("animal/cat", "animal/dog", "thing/frame")


@pytest.mark.parametrize("split", ["", "train"])
def test_images_beside_nested_folders_are_refused(split: str, nested: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(nested, folder / split)
    if split:
        shutil.copytree(nested, folder / "test")
    shutil.copyfile(nested / "animal" / "cat" / "0.png", folder / split / "animal" / "0.png")
    with pytest.raises(DataError, match="holds folders and 1 images beside them"):
        load_data(folder, nested_classes=True)
    assert load_data(folder).class_names == ("animal", "thing")


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "much"])
def test_weights_that_are_none_are_refused(value: str, nested: Path, tmp_path: Path) -> None:
    words = ["--data", str(nested), "--out", str(tmp_path / "run"), "--nested-classes", "--hierarchy-loss", value]
    assert main(words) != 0
    assert not (tmp_path / "run").exists()


def test_classes_without_parents_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hierarchy_loss is 1, and no two classes have a parent in common"):
        train(photos, tmp_path / "run", ModelConfig(backbone="tiny"), TrainConfig(hierarchy_loss=1.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("augment", "frozen"), [((), False), (("mixup",), False), ((), True)])
def test_the_loss_counts(augment: tuple[str, ...], frozen: bool, nested: Path, tmp_path: Path) -> None:
    data = load_data(nested, nested_classes=True)
    losses = []
    for weight in (0.0, 2.0):
        recipe = TrainConfig(
            epochs=1, batch_size=16, augment=augment, hierarchy_loss=weight, freeze_backbone=frozen,
            embedding_cache=str(tmp_path / "cache") if frozen else None, class_weights="balanced", label_smoothing=0.1,
        )  # fmt: skip
        result = train(data, tmp_path / f"run-{weight}", ModelConfig(backbone="tiny", head="linear"), recipe)
        losses.append(result.history[0]["train_loss"])
    assert losses[1] > losses[0] + 0.5


def test_from_folders_to_the_answer_of_the_server(
    nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    data = load_data(nested, nested_classes=True)
    recipe = dataclasses.replace(RECIPE, hierarchy_loss=1.0)
    run = train(data, tmp_path / "run", ModelConfig(backbone="tiny", head="linear"), recipe)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["level_accuracies"]) == 1
    parents = np.array([0, 0, 1])
    sums = run.test.probabilities @ np.eye(2)[parents]
    assert results["level_accuracies"][0] == pytest.approx((sums.argmax(1) == parents[run.test.labels]).mean())
    words = [str(run.best), "-o", str(tmp_path / "bundle"), "--images", str(nested), "--formats", "onnx"]
    assert export(words) == 0
    assert "of the classes are not known" not in capsys.readouterr().err
    image = nested / "thing" / "frame" / "1.png"
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        (predictions,) = classifier.predict([image])
        assert [level.label for level in predictions.levels][-1].startswith(predictions.levels[0].label + "/")
    assert runtime(["predict", str(tmp_path / "bundle"), str(image), "--format", "jsonl"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["levels"][0]["label"] == predictions.levels[0].label
    assert told["levels"][0]["score"] == pytest.approx(predictions.levels[0].score, abs=1e-5)
