"""Prototypes and features that are learned as images."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RECIPE
from PIL import Image
from torch import nn
from torch.nn import functional

from tnn_export import export_bundle
from tnn_runtime import Classifier, UsageError
from tnn_train import ImageData, ModelConfig, TrainConfig, TverskyConfig, load_checkpoint, train
from tnn_train.__main__ import main
from tnn_train.model.checkpoint import save_checkpoint
from tnn_train.model.editing import add_class, edit_checkpoint
from tnn_train.model.image_model import ImageModel, LearningModel, Normalize, build_model
from tnn_train.training.loop import resolve
from tnn_train.training.optim import build_optimizer
from tnn_train.training.trainer import Trainer

IMAGES = TverskyConfig(num_features=6, domain="image")
FORMS = {
    "contrast": IMAGES,
    "ratio": dataclasses.replace(IMAGES, model="ratio", normalize=True),
    "opposites": dataclasses.replace(IMAGES, opposites=1.0, difference="ignorematch"),
    "several": dataclasses.replace(IMAGES, num_prototypes=5, intersection="min"),
    "diagonal": dataclasses.replace(IMAGES, feature_bank="diagonal", image_start="noise"),
}
COUNTS = {
    "contrast": {"prototypes": 2, "feature_bank": 6},
    "ratio": {"prototypes": 2, "feature_bank": 6},
    "opposites": {"prototypes": 2, "feature_bank": 3},
    "several": {"prototypes": 5, "feature_bank": 6},
    "diagonal": {"prototypes": 2},
}


def config(form: TverskyConfig = IMAGES, backbone: str = "tiny") -> ModelConfig:
    return ModelConfig(backbone, tversky=form)


def learning(data: ImageData, form: TverskyConfig = IMAGES, backbone: str = "tiny") -> LearningModel:
    """Return a model at its start."""
    torch.manual_seed(0)
    model = build_model(resolve(config(form, backbone), data), is_training=True)
    assert model.images is not None
    model.images.start(
        data.preprocessing,
        {name: torch.rand(raw.shape, generator=torch.manual_seed(1)) for name, raw in model.images.raw.items()},
    )
    return LearningModel(model)


def batch(data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(data.train.sample(12))
    return Normalize(data.preprocessing)(pixels), torch.arange(12) % 2


@pytest.mark.parametrize("name", FORMS)
def test_a_bundle_has_what_the_backbone_makes_of_the_images(name: str, data: ImageData, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", config(FORMS[name]), dataclasses.replace(RECIPE, epochs=1))
    checkpoint = load_checkpoint(run.best)
    model, images = checkpoint.model, checkpoint.model.images
    assert type(model) is ImageModel
    assert images is not None
    assert images.counts == COUNTS[name]
    embedded = images(model.backbone)
    torch.testing.assert_close(model.head.prototypes, embedded["prototypes"], rtol=1e-5, atol=1e-6)
    if "feature_bank" in embedded:
        directions = embedded["feature_bank"] - embedded["feature_bank"].mean(0)
        expected = functional.normalize(directions, dim=1)
        torch.testing.assert_close(model.head.feature_bank, expected, rtol=1e-4, atol=1e-5)
    export_bundle(run.best, tmp_path / "bundle", ("onnx",))
    x = Normalize(data.preprocessing)(torch.from_numpy(data.test.pixels))
    with torch.inference_mode():
        eager = LearningModel(copy.deepcopy(model)).eval()(x).numpy()
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        np.testing.assert_allclose(classifier.logits(data.test.pixels), eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_a_step_moves_every_image(name: str, data: ImageData) -> None:
    model = learning(data, FORMS[name]).train()
    before = {key: raw.detach().clone() for key, raw in model.images.raw.items()}
    optimizer = build_optimizer(model, model.head, TrainConfig(learning_rate=1e-3, weight_decay=0.5))
    x, y = batch(data)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    for key, raw in model.images.raw.items():
        assert bool((raw != before[key]).flatten(1).any(1).all()), key
        pixels = model.images.pixels()[key].detach()
        assert bool(((pixels > 0) & (pixels < 1)).all())
    for name in model.images.counts:
        assert model.head.get_parameter(name).grad is None


def test_weights_do_not_decay_towards_grey_in_images(data: ImageData) -> None:
    model = learning(data)
    optimizer = build_optimizer(model, model.head, TrainConfig(head_learning_rate=0.5))
    images = {id(raw) for raw in model.images.raw.values()}
    found = [group for group in optimizer.param_groups if images & {id(one) for one in group["params"]}]
    assert [(group["lr"], group["weight_decay"]) for group in found] == [(0.5, 0.0)]


@pytest.mark.parametrize("start", ["samples", "noise"])
@pytest.mark.parametrize("backbone", ["tiny", "plain", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_running_statistics_are_those_of_the_data(backbone: str, start: str, data: ImageData) -> None:
    model = learning(data, dataclasses.replace(IMAGES, image_start=start), backbone).train()
    alone = copy.deepcopy(model.backbone)
    x, _ = batch(data)
    torch.manual_seed(3)
    model(x).sum().backward()
    torch.manual_seed(3)
    alone(x)
    ours, theirs = dict(model.backbone.named_buffers()), dict(alone.named_buffers())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(part.training for part in model.modules())


def test_a_part_that_is_in_evaluation_mode_stays_so(data: ImageData) -> None:
    model = learning(data).train()
    norm = model.backbone.norm
    assert isinstance(norm, nn.Module)
    norm.eval()
    model(batch(data)[0])
    assert not norm.training
    assert model.backbone.training


@pytest.mark.parametrize("start", ["samples", "noise"])
def test_images_start_as_samples_of_their_class_or_as_noise(start: str, data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, learning_rate=0.0)
    run = train(data, tmp_path / "run", config(dataclasses.replace(IMAGES, image_start=start)), recipe)
    images = load_checkpoint(run.best).model.images
    assert images is not None
    pixels = torch.cat(list(images.pixels().values())).permute(0, 2, 3, 1).detach().numpy()
    known = data.train.pixels.astype(np.float32) / 255
    assert known is not None
    distances = np.abs(pixels[:, None] - known[None]).max((2, 3, 4))
    if start == "noise":
        assert distances.min() > 0.1
        return
    assert distances.min(1).max() < 0.021
    nearest = distances.argmin(1)
    assert len(set(nearest)) == len(nearest)
    assert data.train.labels[nearest].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]


RECIPES = {
    "plain": RECIPE,
    "averaged": dataclasses.replace(RECIPE, ema_decay=0.9, accumulate=2, clip_norm=1.0),
    "half": dataclasses.replace(RECIPE, precision="bf16", optimizer="sgd"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_stopped_in_an_epoch_ends_the_same(
    name: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPES[name], batch_size=8, epochs=2)
    whole = train(data, tmp_path / "whole", config(), recipe)
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
        learn(trainer, *batch)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", config(), recipe)
    monkeypatch.undo()
    torch.randn(7)
    parts = train(data, tmp_path / "parts", config(), recipe, resume=True)
    for place in ("best", "last"):
        ours, theirs = (load_checkpoint(run.folder / place).model.state_dict() for run in (parts, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), place
    assert parts.test.loss == whole.test.loss


def test_batches_that_make_a_step_give_the_gradient_of_one(data: ImageData, tmp_path: Path) -> None:
    models = []
    for accumulate, size in ((1, 16), (2, 8)):
        recipe = dataclasses.replace(RECIPE, epochs=1, accumulate=accumulate, batch_size=size, optimizer="sgd")
        run = train(data, tmp_path / str(accumulate), config(backbone="plain"), recipe)
        models.append(load_checkpoint(run.best).model.state_dict())
    for key, value in models[0].items():
        torch.testing.assert_close(value, models[1][key], rtol=1e-4, atol=1e-5)


def test_the_head_of_a_checkpoint_is_trained_on_with_its_images(data: ImageData, tmp_path: Path) -> None:
    first = train(data, tmp_path / "first", config(), dataclasses.replace(RECIPE, epochs=1))
    recipe = dataclasses.replace(RECIPE, epochs=1, learning_rate=0.0, weights=str(first.best), keep_head=True)
    kept, more = (load_checkpoint(train(data, tmp_path / "more", config(), recipe).best), load_checkpoint(first.best))
    assert kept.model.images is not None
    assert more.model.images is not None
    for name, raw in more.model.images.raw.items():
        assert torch.equal(kept.model.images.raw[name], raw)
    with pytest.raises(UsageError, match="embeds but once"):
        train(data, tmp_path / "frozen", config(), dataclasses.replace(recipe, augment=None, freeze_backbone=True))


@pytest.fixture(scope="module")
def several(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run with five prototypes; read only."""
    folder = tmp_path_factory.mktemp("several") / "run"
    return train(data, folder, config(FORMS["several"]), dataclasses.replace(RECIPE, epochs=1)).best


@pytest.mark.parametrize(("prototypes", "features"), [((1,), ()), ((0, 4), (2,)), ((), (0, 3))])
def test_images_follow_an_edit(
    prototypes: tuple[int, ...], features: tuple[int, ...], several: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(several)
    edited = edit_checkpoint(checkpoint, features, prototypes)
    save_checkpoint(tmp_path / "edited", edited)
    images, before = load_checkpoint(tmp_path / "edited").model.images, checkpoint.model.images
    assert images is not None
    assert before is not None
    left = [place for place in range(5) if place not in prototypes]
    assert torch.equal(images.raw["prototypes"], before.raw["prototypes"][left])
    assert torch.equal(images.raw["feature_bank"], before.raw["feature_bank"])


def test_a_class_that_is_added_leaves_the_images_out(several: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(several)
    pixels = np.random.default_rng(0).integers(0, 255, (4, *checkpoint.preprocessing.shape), np.uint8)
    larger = add_class(checkpoint, "bird", pixels)
    save_checkpoint(tmp_path / "larger", larger)
    loaded = load_checkpoint(tmp_path / "larger")
    assert loaded.model.images is None
    assert loaded.config.image_size == ()
    assert loaded.config.tversky.domain == "embedding"
    assert any("learned images" in change for change in larger.training["edits"][-1]["changes"])


@pytest.mark.parametrize("missing", [("domain",), ("domain", "image_start")])
def test_checkpoints_of_before_load(missing: tuple[str, ...], checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    content = json.loads(file.read_text())
    del content["model"]["image_size"]
    for name in missing:
        del content["model"]["tversky"][name]
    file.write_text(json.dumps(content))
    loaded = load_checkpoint(checkpoint)
    assert loaded.model.images is None
    assert loaded.config.tversky.domain == "embedding"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--tversky.domain picture", "unknown --tversky.domain 'picture'; choose from embedding, image"),
        ("--tversky.domain image --head linear", "--tversky.domain is image, and --head is linear"),
        ("--tversky.domain image --freeze-backbone", "--freeze-backbone embeds but once"),
        ("--tversky.domain image --tversky.start linear", "--tversky.domain is image, and --tversky.start is linear"),
        ("--tversky.domain image --tversky.start class-means", "--tversky.start is class-means"),
        ("--tversky.domain image --tversky.prototype-space feature", "--tversky.prototype-space feature"),
        ("--tversky.domain image --tversky.num-features 1", "--tversky.num-features 1; expected at least two images"),
        ("--tversky.domain image --tversky.num-features 2 --tversky.opposites 1", "expected at least two images"),
        ("--tversky.domain image --tversky.image-start zeros", "unknown --tversky.image-start 'zeros'"),
    ],
)
def test_bad_input_gets_one_error(
    options: str, told: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(photos), "--backbone", "tiny", "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert main([*words, *options.split()]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("error:") == 1
    assert not (tmp_path / "run").exists()


def test_it_is_swept_beside_the_linear_head(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[Any] = ["sweep", "--data", photos, "--out", tmp_path / "sweep", "--seeds", 1, "--backbone", "tiny"]
    assert main([*map(str, words), "--epochs", "1", "--tversky.domain", "image", "--tversky.num-features", "4"]) == 0
    assert "head=tversky" in capsys.readouterr().out


def test_the_images_are_in_the_report_and_drawn(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = tmp_path / "run", tmp_path / "learned.png"
    words = ["--data", str(photos), "--backbone", "tiny", "--out", str(run), "--epochs", "1"]
    assert main([*words, "--tversky.domain", "image", "--tversky.num-features", "3"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="learned-images">Learned images</h2>' in page
    assert page.count('alt="learned image"') == 5
    assert "Prototype 1, dog" in page
    capsys.readouterr()
    assert main(["prototypes", str(run), "-o", str(file)]) == 0
    assert "5 learned images" in capsys.readouterr().out
    with Image.open(file) as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 100
    assert main(["prototypes", str(run), "-o", str(file)]) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["without images", "no png"])
def test_what_cannot_be_drawn_is_told(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, told = {"without images": ("a.png", "has no learned images"), "no png": ("a.gif", "ends in .png")}[kind]
    assert main(["prototypes", str(checkpoint), "-o", str(tmp_path / name)]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / name).exists()
