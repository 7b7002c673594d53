"""A Tversky head that starts as a linear layer and is unfolded in the course of the training."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from conftest import RECIPE
from torch import Tensor

from tnn_runtime import UsageError
from tnn_train import (
    ImageData,
    LinearHead,
    ModelConfig,
    TrainConfig,
    TverskyConfig,
    TverskyHead,
    evaluate,
    load_checkpoint,
    load_data,
    train,
)
from tnn_train.heads import Head
from tnn_train.model.image_model import Normalize
from tnn_train.training.trainer import Trainer

TINY = ModelConfig(backbone="tiny", tversky=TverskyConfig(start="linear"))
SHORT = dataclasses.replace(RECIPE, epochs=2, batch_size=8)

RECIPES = {
    "plain": SHORT,
    "averaged": dataclasses.replace(SHORT, ema_decay=0.9, accumulate=2, clip_norm=1.0),
    "half precision": dataclasses.replace(SHORT, precision="bf16", channels_last=True),
    "averaged in half precision": dataclasses.replace(SHORT, precision="bf16", ema_decay=0.9),
    "momentum": dataclasses.replace(SHORT, optimizer="sgd", schedule="cosine", warmup_epochs=0.5),
    "no decay": dataclasses.replace(SHORT, weight_decay=0.0, schedule="plateau", head_learning_rate=1e-3),
    "mixed": dataclasses.replace(SHORT, augment=("mixup",), label_smoothing=0.1, class_weights="balanced"),
    "frozen": dataclasses.replace(SHORT, augment=None, freeze_backbone=True),
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", limit=120)


class Watch:
    """Compares the logits of all models of a training right before and right after its unfolding."""

    def __init__(self, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.differences: list[float] = []
        images = Normalize(data.preprocessing)(torch.from_numpy(data.test.sample(40)))
        exchange = Trainer._exchange_heads

        def watched(trainer: Trainer, head: Head, average: Head | None = None) -> None:
            before = _logits(trainer, images)
            assert all(isinstance(model.head, LinearHead) for model in _models(trainer))
            exchange(trainer, head, average)
            assert all(isinstance(model.head, TverskyHead) for model in _models(trainer))
            after = _logits(trainer, images)
            self.steps.append(trainer.step)
            self.differences += [
                float((one - other).abs().max() / one.abs().max()) for one, other in zip(before, after, strict=True)
            ]

        monkeypatch.setattr(Trainer, "_exchange_heads", watched)


def _models(trainer: Trainer) -> list:
    return [trainer.stage.model] if trainer._average is None else [trainer.stage.model, trainer.model]


@torch.no_grad()
def _logits(trainer: Trainer, images: Tensor) -> list[Tensor]:
    """Return the logits of each model, but for their mean over the classes."""
    found = []
    for model in _models(trainer):
        mode = model.training
        logits = model.eval()(images)
        model.train(mode)
        found.append(logits - logits.mean(1, keepdim=True))
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("code", ["classes", "hierarchy"])
def test_the_unfolding_changes_no_prediction(
    name: str, code: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(digits, monkeypatch)
    recipe = dataclasses.replace(RECIPES[name], embedding_cache=str(tmp_path / "cache"))
    model = dataclasses.replace(TINY, tversky=TverskyConfig(start="linear", code=code))
    run = train(digits, tmp_path / "run", model, recipe)
    assert len(watch.steps) == 1
    assert len(watch.differences) == (1 if recipe.ema_decay is None else 2)
    assert max(watch.differences) <= 1e-5
    head = load_checkpoint(run.folder / "last").model.head
    assert isinstance(head, TverskyHead)
    assert len(head.config.attributes) == (10 if code == "classes" else 17)


@pytest.mark.parametrize(("share", "step"), [(0.0, 0), (0.25, 6), (0.7, 17), (1.0, 24)])
def test_it_comes_after_the_given_share_of_the_steps(
    share: float, step: int, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(digits, monkeypatch)
    model = dataclasses.replace(TINY, tversky=TverskyConfig(start="linear", unfold_at=share))
    train(digits, tmp_path / "run", model, SHORT)
    assert watch.steps == [step]


@pytest.mark.parametrize(
    ("name", "memory"),
    [("plain", "exp_avg"), ("averaged", "exp_avg"), ("frozen", "exp_avg"), ("momentum", "momentum_buffer")],
)
def test_the_optimizer_remembers_the_gradients_of_the_linear_layer(
    name: str, memory: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Trainer._exchange_heads
    remembered = []

    def watched(trainer: Trainer, head: Head, average: Head | None = None) -> None:
        linear, state = trainer.stage.model.head, trainer._optimizer.state
        before = {parameter: dict(state[parameter]) for parameter in (linear.weight, linear.bias)}
        exchange(trainer, head, average)
        for new, old, matrix in linear.inherited(head):
            assert old not in state
            torch.testing.assert_close(state[new][memory], matrix.float() @ before[old][memory])
            assert float(state[new][memory].abs().max()) > 0
            remembered.append(int(state[new].get("step", 0)))
        assert len(state) == len(list(trainer.stage.learner.parameters())) - (memory == "exp_avg")

    monkeypatch.setattr(Trainer, "_exchange_heads", watched)
    train(digits, tmp_path / "run", TINY, dataclasses.replace(RECIPES[name], embedding_cache=str(tmp_path / "cache")))
    steps = round(0.7 * 24 / RECIPES[name].accumulate)
    assert remembered == ([steps, steps] if memory == "exp_avg" else [0, 0])


def test_a_checkpoint_of_the_first_phase_is_the_unfolded_head(digits: ImageData, tmp_path: Path) -> None:
    """Its predictions are those that were validated, although the training goes on with the linear layer."""
    model = dataclasses.replace(TINY, tversky=TverskyConfig(start="linear", unfold_at=1.0))
    run = train(digits, tmp_path / "run", model, dataclasses.replace(SHORT, epochs=3, patience=1))
    best = load_checkpoint(run.best)
    assert isinstance(best.model.head, TverskyHead)
    assert best.config.tversky == best.model.head.config
    assert evaluate(best.model, digits.val).loss == pytest.approx(best.metrics["val_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["plain", "averaged", "averaged in half precision", "momentum", "frozen"])
def test_a_training_stopped_around_the_unfolding_ends_the_same(
    name: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at ten steps, among them the one after which it is unfolded."""
    recipe = dataclasses.replace(RECIPES[name], embedding_cache=str(tmp_path / "cache"))
    whole = train(digits, tmp_path / "whole", TINY, recipe)
    learn = Trainer._learn
    stride = recipe.accumulate
    unfolded = round(0.7 * 24 / stride) * stride
    others = [step for step in range(stride, 24, stride) if step != unfolded]
    steps = sorted([*random.Random(0).sample(others, 9), unfolded])
    for step in steps:

        def interrupted(trainer: Trainer, *batch: Tensor, step: int = step) -> None:
            learn(trainer, *batch)
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Trainer, "_learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(digits, tmp_path / "parts", TINY, recipe, resume=step > steps[0])
    monkeypatch.setattr(Trainer, "_learn", learn)
    parts = train(digits, tmp_path / "parts", TINY, recipe, resume=True)
    for folder in ("last", "best"):
        ours, theirs = (load_checkpoint(run.folder / folder).model.state_dict() for run in (parts, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), folder
    assert parts.test.loss == whole.test.loss


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"start": "random"}, "start"),
        ({"unfold_at": 0.5}, "unfold_at"),
        ({"code": "classes"}, "code"),
    ],
    ids=["start", "share", "code"],
)
def test_a_training_is_not_resumed_with_another_start(
    changed: dict[str, object], named: str, digits: ImageData, tmp_path: Path
) -> None:
    train(digits, tmp_path / "run", TINY, SHORT)
    other = dataclasses.replace(TINY, tversky=dataclasses.replace(TINY.tversky, **changed))
    with pytest.raises(UsageError, match=named):
        train(digits, tmp_path / "run", other, SHORT, resume=True)


def test_a_run_of_two_batches_can_be_unfolded(digits: ImageData, tmp_path: Path) -> None:
    recipe = TrainConfig(epochs=1, batch_size=48, augment=())
    assert isinstance(load_checkpoint(train(digits, tmp_path / "run", TINY, recipe).best).model.head, TverskyHead)
