from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from torch.nn import functional

from tnn_runtime import OutputExistsError, UsageError
from tnn_train import ImageData, ModelConfig, evaluate, load_checkpoint, load_data, train
from tnn_train import loop as loop_module
from tnn_train.errors import TrainingError
from tnn_train.loop import TrainResult
from tnn_train.models import Normalize

TINY = ModelConfig(backbone="tiny")


def test_every_head_learns(runs: dict[str, TrainResult]) -> None:
    for name, run in runs.items():
        assert run.test.accuracy >= 0.9, name
        assert run.history[-1]["train_loss"] < run.history[0]["train_loss"], name


def test_a_run_leaves_its_metrics_and_results(runs: dict[str, TrainResult]) -> None:
    run = runs["tversky"]
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    results = json.loads((run.folder / "results.json").read_text())
    assert results["test_accuracy"] == run.test.accuracy
    assert np.trace(results["confusion"]) == round(run.test.accuracy * len(run.test.labels))
    assert sorted(path.name for path in run.folder.iterdir()) == ["best", "last", "metrics.jsonl", "results.json"]


def test_the_best_epoch_is_chosen_on_validation(runs: dict[str, TrainResult]) -> None:
    for run in runs.values():
        best = max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        assert load_checkpoint(run.best).metrics == best
        assert load_checkpoint(run.folder / "last").metrics == run.history[-1]


def test_the_test_set_is_touched_once_at_the_end(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = loop_module.evaluate
    monkeypatch.setattr(loop_module, "evaluate", lambda model, images: seen.append(images) or original(model, images))
    train(data, tmp_path / "run", TINY, RECIPE)
    assert [images is data.test for images in seen] == [False] * RECIPE.epochs + [True]


def test_evaluation_counts_right_answers(runs: dict[str, TrainResult], data: ImageData) -> None:
    model = load_checkpoint(runs["tversky"].best).model
    result = evaluate(model, data.test, batch_size=3)
    with torch.no_grad():
        logits = model(Normalize(data.preprocessing)(torch.from_numpy(data.test.pixels)))
    assert np.array_equal(result.predictions, logits.argmax(1).numpy())
    assert result.accuracy == (logits.argmax(1).numpy() == data.test.labels).mean()
    assert result.loss == pytest.approx(
        float(functional.cross_entropy(logits, torch.from_numpy(data.test.labels))), rel=1e-5
    )
    assert result.confusion.sum() == len(data.test)
    assert result.confusion.sum(1).tolist() == np.bincount(data.test.labels).tolist()


def test_the_same_seed_gives_the_same_weights_and_another_one_others(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, augment="crop-flip", epochs=1)
    weights = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run = train(data, tmp_path / name, TINY, dataclasses.replace(recipe, seed=seed))
        weights.append(load_checkpoint(run.folder / "last").model.head.prototypes)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, augment="crop-flip")
    whole = train(data, tmp_path / "whole", TINY, recipe)
    original = loop_module._Trainer.run_epoch

    def stop_in_the_second_epoch(trainer: loop_module._Trainer) -> None:
        original(trainer)
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop_module._Trainer, "run_epoch", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", TINY, recipe)
    torch.randn(7)
    parts = train(data, tmp_path / "parts", TINY, recipe, resume=True)
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(run.folder / name).model.state_dict() for run in (parts, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    timing = {"seconds", "images_per_second"}
    for ours, theirs in zip(parts.history, whole.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


def test_resuming_another_training_lists_what_differs(runs: dict[str, TrainResult], data: ImageData) -> None:
    other = dataclasses.replace(RECIPE, learning_rate=0.5)
    with pytest.raises(UsageError, match=r"belongs to another training \(.*learning_rate: was 0.01, now 0.5"):
        train(data, runs["linear"].folder, ModelConfig(backbone="tiny", head="linear"), other, resume=True)


def test_an_existing_run_is_kept_unless_overwriting(data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(OutputExistsError):
        train(data, tmp_path / "run", TINY, RECIPE)
    assert (tmp_path / "run" / "precious").exists()
    with pytest.raises(OutputExistsError, match="run has no best, so it is something else and is not overwritten"):
        train(data, tmp_path / "run", TINY, RECIPE, overwrite=True)
    (tmp_path / "run" / "best").mkdir()
    train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, epochs=1), overwrite=True)
    assert not (tmp_path / "run" / "precious").exists()


def test_a_loss_that_is_no_number_stops_and_names_the_step(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at .*epoch \d+.*; earlier checkpoints are kept; try a lower"
    ):
        train(data, tmp_path / "run", TINY, recipe)


def test_a_failed_training_keeps_the_run_it_was_to_overwrite(data: ImageData, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", TINY, RECIPE)
    broken = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(TrainingError):
        train(data, tmp_path / "run", TINY, broken, overwrite=True)
    assert load_checkpoint(run.best).metrics in run.history


def test_the_stem_follows_the_size_of_the_images(photos: Path) -> None:
    for size, stem in ((32, "small"), (95, "small"), (96, "imagenet"), (224, "imagenet")):
        sized = load_data(photos, image_size=size, limit=10)
        assert loop_module.resolve(ModelConfig(), sized).stem == stem
        assert loop_module.resolve(ModelConfig(stem="small"), sized).stem == "small"


def test_a_device_that_does_not_work_is_an_error(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 'cuda:99' does not work here"):
        train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, device="cuda:99"))
    with pytest.raises(UsageError, match="unknown device 'gpu'; choose auto, cpu, cuda or cuda:N"):
        train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, device="gpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 10])
def test_a_few_steps_are_enough_for_the_schedule(epochs: int, data: ImageData, tmp_path: Path) -> None:
    """One batch an epoch; the one-cycle schedule divides by the length of its first phase less one step."""
    run = train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, epochs=epochs, batch_size=64))
    assert len(run.history) == epochs
