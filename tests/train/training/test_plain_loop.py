"""The trainer does what the training loop of a textbook does."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from plain_loop import PlainRun, train_plainly
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tnn_train import (
    ImageData,
    LinearHead,
    ModelConfig,
    TrainConfig,
    TverskyConfig,
    load_checkpoint,
    load_data,
    train,
)
from tnn_train.errors import TrainingError

MODEL = ModelConfig(backbone="plain", head="linear")
RECIPE = TrainConfig(epochs=2, batch_size=4, schedule="constant", weight_decay=0.0, augment=())
"""Of the 22 images, each epoch makes five batches of 4 and one of 2: with ``accumulate=4``, steps of 16 and of 6."""
RATES = {"sgd": 0.05, "adamw": 1e-2}


@pytest.fixture(scope="module")
def data(uneven: Path) -> ImageData:
    return load_data(uneven, image_size=8)


def same(data: ImageData, folder: Path, recipe: TrainConfig, model: ModelConfig = MODEL) -> PlainRun:
    """Train with both, and compare weights and losses."""
    plain = train_plainly(data, model, recipe)
    run = train(data, folder, model, recipe)
    assert plain.distance(load_checkpoint(run.folder / "last").model) <= 1e-3
    assert [row["train_loss"] for row in run.history] == pytest.approx(plain.losses, rel=1e-4)
    return plain


def scaled_from(exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loss scaling begin with a power of two that the first gradients do not bear."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**exponent)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_ends_with_the_weights_of_the_plain_loop(
    optimizer: str, precision: str, accumulate: int, class_weights: str, data: ImageData, tmp_path: Path
) -> None:
    options = {"precision": precision, "accumulate": accumulate, "class_weights": class_weights}
    rate = RATES[optimizer]
    same(data, tmp_path / "run", dataclasses.replace(RECIPE, optimizer=optimizer, learning_rate=rate, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "accumulate": 4, "ema_decay": 0.9},
        {"optimizer": "sgd", "accumulate": 6, "epochs": 1},
    ],
    ids=str,
)
def test_one_cycle_cycles_the_rate_alone(options: dict[str, object], data: ImageData, tmp_path: Path) -> None:
    rate = RATES[str(options["optimizer"])]
    same(data, tmp_path / "run", dataclasses.replace(RECIPE, schedule="one-cycle", learning_rate=rate, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "ema_decay": 0.9},
        {"optimizer": "sgd", "accumulate": 2, "class_weights": "balanced"},
        {"optimizer": "adamw", "ema_decay": 0.9, "clip_norm": 1.0},
    ],
    ids=str,
)
def test_a_skipped_step_changes_nothing(
    options: dict[str, object], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_from(22, monkeypatch)
    rate = RATES[str(options["optimizer"])]
    plain = same(data, tmp_path / "run", dataclasses.replace(RECIPE, precision="fp16", learning_rate=rate, **options))
    assert 0 < plain.skipped < len(plain.norms)


def test_with_batch_norm_and_a_tversky_head(data: ImageData, tmp_path: Path) -> None:
    model = ModelConfig(backbone="tiny", tversky=TverskyConfig(start="random", num_features=16))
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", learning_rate=0.01, accumulate=4, class_weights="balanced")
    same(data, tmp_path / "run", recipe, model)


@pytest.mark.parametrize("accumulate", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_each_step_has_the_gradient_of_all_its_images(
    accumulate: int, class_weights: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    step = SGD.step

    def measured(optimizer: Optimizer, *arguments: object) -> object:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        return step(optimizer, *arguments)

    options = {"accumulate": accumulate, "class_weights": class_weights}
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", learning_rate=0.05, epochs=1, **options)
    expected = train_plainly(data, MODEL, recipe).norms
    monkeypatch.setattr(SGD, "step", measured)
    train(data, tmp_path / "run", MODEL, recipe)
    assert norms == pytest.approx(expected, rel=1e-4)


def test_gradients_that_are_never_finite_stop_the_training(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, but not its gradient: loss scaling would skip step after step."""
    scaled_from(-10, monkeypatch)
    monkeypatch.setattr(LinearHead, "penalty", lambda head: (0 * head.weight).sum().sqrt())
    message = r"the gradients at epoch 1, step 4 are not finite in fp16, whatever the loss is scaled by; .*bf16"
    with pytest.raises(TrainingError, match=message):
        train(data, tmp_path / "run", MODEL, dataclasses.replace(RECIPE, precision="fp16"))


@pytest.mark.parametrize("names", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_the_answer_to_a_blended_image_is_right_to_the_share_of_its_class(
    names: tuple[str, ...], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the code that came with the paper on mixup."""
    shares: list[float] = []
    loss = LinearHead.loss

    def watched(head: LinearHead, x: Tensor, logits: Tensor, targets: Tensor, *options: object) -> Tensor:
        shares.extend(targets[torch.arange(len(targets)), logits.argmax(1)].tolist())
        return loss(head, x, logits, targets, *options)

    monkeypatch.setattr(LinearHead, "loss", watched)
    recipe = dataclasses.replace(RECIPE, epochs=4, batch_size=22, learning_rate=1e-2, augment=names)
    run = train(data, tmp_path / "run", ModelConfig(backbone="tiny", head="linear"), recipe)
    accuracies = torch.tensor(shares).view(4, 22).double().mean(1).tolist()
    assert [row["train_accuracy"] for row in run.history] == pytest.approx(accuracies, rel=1e-6)
    assert any(0 < share < 1 for share in shares)
