"""Trainings that go on with the head of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import RECIPE
from torch import Tensor

from tnn_runtime import UsageError
from tnn_train import (
    Checkpoint,
    ImageData,
    ModelConfig,
    TrainConfig,
    TverskyConfig,
    evaluate,
    load_checkpoint,
    save_checkpoint,
    train,
)
from tnn_train.__main__ import main
from tnn_train.model.unfolding import unfold_checkpoint
from tnn_train.training.loop import TrainResult
from tnn_train.training.trainer import Trainer

TINY = ModelConfig(backbone="tiny")


@pytest.fixture
def unfolded(runs: dict[str, TrainResult], tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "unfolded", unfold_checkpoint(load_checkpoint(runs["linear"].best)))
    return tmp_path / "unfolded"


def still(weights: Path, **options: object) -> TrainConfig:
    """Return a recipe that keeps the head of a checkpoint and changes nothing."""
    rates = {"learning_rate": 0.0, "head_learning_rate": 0.0, "weight_decay": 0.0}
    return dataclasses.replace(RECIPE, epochs=1, weights=str(weights), keep_head=True, **{**rates, **options})


def assert_same_head(one: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = one.model.head.state_dict(), other.model.head.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert one.config.tversky == other.config.tversky


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.9}, {"freeze_backbone": True, "augment": None}, {"precision": "bf16"}],
    ids=str,
)
def test_it_starts_from_the_head_and_its_form_without_a_linear_phase(
    options: dict[str, object], unfolded: Path, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Trainer, "_exchange_heads")
    recipe = still(unfolded, embedding_cache=str(tmp_path / "cache"), **options)
    run = train(data, tmp_path / "run", TINY, recipe)
    assert_same_head(load_checkpoint(run.best), load_checkpoint(unfolded))


@pytest.mark.parametrize("name", ["tversky", "ratio", "linear"])
def test_any_family_and_form_can_be_kept(
    name: str, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    model = dataclasses.replace(TINY, head="linear" if name == "linear" else "tversky")
    run = train(data, tmp_path / "run", model, still(runs[name].best))
    assert_same_head(load_checkpoint(run.best), load_checkpoint(runs[name].best))


def test_class_means_are_not_taken_again(data: ImageData, tmp_path: Path) -> None:
    model = dataclasses.replace(TINY, tversky=TverskyConfig(num_features=16, start="class-means"))
    first = train(data, tmp_path / "first", model, RECIPE)
    run = train(data, tmp_path / "run", TINY, still(first.best))
    assert_same_head(load_checkpoint(run.best), load_checkpoint(first.best))


def test_the_options_of_the_checkpoint_may_be_repeated(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    same = dataclasses.replace(TINY, tversky=TverskyConfig(num_features=16, model="ratio"))
    train(data, tmp_path / "run", same, still(runs["ratio"].best))


def test_training_goes_on(unfolded: Path, data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, weights=str(unfolded), keep_head=True, learning_rate=1e-3)
    run = train(data, tmp_path / "run", TINY, recipe)
    before, after = load_checkpoint(unfolded), load_checkpoint(run.folder / "last")
    assert not torch.equal(before.model.head.state_dict()["thresholds"], after.model.head.state_dict()["thresholds"])
    assert run.history[-1]["train_loss"] <= evaluate(before.model, data.train).loss + 1e-3
    assert json.loads((run.folder / "results.json").read_text())["config"]["train"]["keep_head"] is True


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=str)
def test_a_training_that_was_stopped_ends_the_same(
    options: dict[str, object], unfolded: Path, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, weights=str(unfolded), keep_head=True, **options)
    whole = train(data, tmp_path / "whole", TINY, recipe)
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: Tensor) -> None:
        learn(trainer, *batch)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", TINY, recipe)
    monkeypatch.setattr(Trainer, "_learn", learn)
    parts = train(data, tmp_path / "parts", TINY, recipe, resume=True)
    ours, theirs = (load_checkpoint(run.folder / "last").model.state_dict() for run in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_not_resumed_without_the_head(unfolded: Path, data: ImageData, tmp_path: Path) -> None:
    train(data, tmp_path / "run", TINY, still(unfolded))
    other = dataclasses.replace(still(unfolded), keep_head=False)
    with pytest.raises(UsageError, match="keep_head: was True, now False"):
        train(data, tmp_path / "run", TINY, other, resume=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--weights {linear}/best", "--head is tversky, and the head of {linear}/best is to be kept, which is linear"),
        ("--weights {ratio}/best --head linear", "--head is linear, and the head of {ratio}/best is to be kept, which"),
        (
            "--weights {ratio}/best --tversky.model contrast --tversky.alpha 0.25",
            "--tversky.alpha is 0.25, and the head of {ratio}/best is to be kept, which has 0.5; leave --tversky.alpha",
        ),
        (
            "--weights {ratio}/best --tversky.num-features 32",
            "--tversky.num-features is 32, and the head of {ratio}/best",
        ),
        ("--weights {ratio}", "{ratio} is a run; give one of its checkpoints: {ratio}/best"),
        (
            "--weights {ratio}/best/model.safetensors",
            "is to be kept, which is no checkpoint folder; expected one, such",
        ),
        ("--weights imagenet --stem imagenet", "the head of imagenet is to be kept, which is no checkpoint folder"),
        ("--weights nowhere", "weights 'nowhere' do not exist"),
        ("", "--keep-head needs a checkpoint to take the head of; give --weights"),
        ("--weights {ratio}/best --backbone resnet18", "has the backbone tiny; expected resnet18"),
        ("--weights {ratio}/best --backbone plain --stem small", "has the backbone tiny; expected plain"),
    ],
)
def test_what_contradicts_the_head_gets_one_line(
    words: str,
    message: str,
    runs: dict[str, TrainResult],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = {name: str(run.folder) for name, run in runs.items()}
    arguments = f"--data {photos} --backbone tiny --out {tmp_path}/run --keep-head {words.format(**folders)}"
    assert main(arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-train: error: ")
    assert message.format(**folders) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cow"), "class 1 is 'cow', and the checkpoint's 'dog'"),
        (("dog", "cat"), "the same ones in another order: class 0 is 'dog', and the checkpoint's 'cat'"),
        (("cat", "dog", "cow"), "3, and the checkpoint 2"),
    ],
)
def test_other_classes_are_refused(
    names: tuple[str, ...], message: str, unfolded: Path, data: ImageData, tmp_path: Path
) -> None:
    other = dataclasses.replace(data, class_names=names)
    with pytest.raises(UsageError, match=f"is to be kept, and the images have other classes .*{message}"):
        train(other, tmp_path / "run", TINY, still(unfolded))


def test_a_sweep_over_seeds(unfolded: Path, photos: Path, tmp_path: Path) -> None:
    words = f"sweep --data {photos} --backbone tiny --epochs 1 --seeds 2 --heads tversky --out {tmp_path}/sweep"
    assert main([*words.split(), "--weights", str(unfolded), "--keep-head"]) == 0
    for seed in (0, 1):
        best = load_checkpoint(tmp_path / "sweep" / f"tversky-{seed}" / "best")
        assert best.config.tversky == load_checkpoint(unfolded).config.tversky
