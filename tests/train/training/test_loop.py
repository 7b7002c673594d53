from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from torch.nn import functional

from tnn_runtime import OutputExistsError, UsageError
from tnn_train import ImageData, ModelConfig, build_model, evaluate, load_checkpoint, load_data, train
from tnn_train.errors import TrainingError
from tnn_train.model.image_model import Normalize
from tnn_train.run_files import RESULTS_SCHEMA
from tnn_train.training import loop as loop_module
from tnn_train.training import trainer as trainer_module
from tnn_train.training.loop import TrainResult

TINY = ModelConfig(backbone="tiny")
PLAIN = dataclasses.replace(TINY, backbone="plain")


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
    right = sum(count for label, prediction, count in results["confusion"] if label == prediction)
    assert right == round(run.test.accuracy * len(run.test.labels))
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
    score = trainer_module.score
    monkeypatch.setattr(
        trainer_module,
        "score",
        lambda learner, prepare, items, processes, **options: (
            seen.append(items) or score(learner, prepare, items, processes, **options)
        ),
    )
    train(data, tmp_path / "run", TINY, RECIPE)
    assert [items is data.test for items in seen] == [False] * RECIPE.epochs + [True]
    assert [items is data.val for items in seen] == [True] * RECIPE.epochs + [False]


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
    recipe = dataclasses.replace(RECIPE, augment=("crop", "flip"), epochs=1)
    weights = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run = train(data, tmp_path / name, TINY, dataclasses.replace(recipe, seed=seed))
        weights.append(load_checkpoint(run.folder / "last").model.head.feature_bank)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_existing_run_is_kept_unless_overwriting(data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(OutputExistsError):
        train(data, tmp_path / "run", TINY, RECIPE)
    assert (tmp_path / "run" / "precious").exists()
    with pytest.raises(OutputExistsError, match="run already exists and has no best, so it is something else"):
        train(data, tmp_path / "run", TINY, RECIPE, overwrite=True)
    (tmp_path / "run" / "precious").unlink()
    (tmp_path / "run" / "best").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, epochs=1), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size


def test_a_loss_that_is_no_number_stops_and_names_the_step(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", learning_rate=1e4)
    with pytest.raises(
        TrainingError,
        match=r"the loss is (nan|inf) at .*epoch \d+.*; earlier checkpoints are kept; try a lower learning rate",
    ):
        train(data, tmp_path / "run", PLAIN, recipe)


def test_a_failed_training_keeps_the_run_it_was_to_overwrite(data: ImageData, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", PLAIN, RECIPE)
    broken = dataclasses.replace(RECIPE, optimizer="sgd", learning_rate=1e4, batch_size=2)
    with pytest.raises(TrainingError):
        train(data, tmp_path / "run", PLAIN, broken, overwrite=True)
    assert load_checkpoint(run.best).metrics in run.history


def test_the_stem_follows_the_size_of_the_images(photos: Path) -> None:
    for size, stem in ((32, "small"), (95, "small"), (96, "imagenet"), (224, "imagenet")):
        sized = load_data(photos, image_size=size, limit=10)
        assert loop_module.resolve(ModelConfig(), sized).stem == stem
        assert loop_module.resolve(ModelConfig(stem="small"), sized).stem == "small"


def test_a_device_that_does_not_work_is_an_error(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 'cuda:99' does not work here"):
        train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, device="cuda:99"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "mps", "mps:0", "xpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:0 ", ""])
def test_a_device_that_training_does_not_know_is_an_error(name: str, data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^unknown device '{name}'; choose auto, cpu, cuda or cuda:N$"):
        train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, device=name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 10])
def test_a_few_steps_are_enough_for_the_schedule(epochs: int, data: ImageData, tmp_path: Path) -> None:
    """One batch an epoch; the one-cycle schedule divides by the length of its first phase less one step."""
    run = train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, epochs=epochs, batch_size=64))
    assert len(run.history) == epochs


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 1.0},
        {"optimizer": "adam", "schedule": "cosine", "warmup_epochs": 1.0, "head_learning_rate": 3e-2},
        {"schedule": "step", "decay_epochs": 4, "accumulate": 2, "batch_size": 8},
        {"schedule": "plateau", "label_smoothing": 0.1, "class_weights": "balanced"},
        {"schedule": "constant", "ema_decay": 0.9},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"channels_last": True, "deterministic": True},
        {"augment": ("crop", "mixup", "cutmix")},
        {"augment": ("randaugment", "erase")},
    ],
    ids=str,
)
def test_every_recipe_learns(options: dict[str, object], data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, **{"epochs": 8, **options})
    assert train(data, tmp_path / "run", TINY, recipe).test.accuracy >= 0.85
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_compiled_model_learns_and_is_saved_as_any_other(data: ImageData, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, epochs=2, batch_size=13, compile=True))
    assert run.history[1]["train_loss"] < run.history[0]["train_loss"]
    assert set(load_checkpoint(run.best).model.state_dict()) == set(
        build_model(load_checkpoint(run.best).config).state_dict()
    )


def test_accumulated_batches_are_one_large_batch(data: ImageData, tmp_path: Path) -> None:
    """Without batch norm, two batches of 13 images give the gradient of one of 26."""
    recipe = dataclasses.replace(RECIPE, epochs=2, batch_size=26, optimizer="sgd", learning_rate=0.1)
    plain = ModelConfig(backbone="plain")
    one = train(data, tmp_path / "one", plain, recipe)
    two = train(data, tmp_path / "two", plain, dataclasses.replace(recipe, batch_size=13, accumulate=2))
    ours, theirs = (load_checkpoint(run.folder / "last").model.state_dict() for run in (one, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_the_average_is_what_is_validated_and_kept(data: ImageData, tmp_path: Path) -> None:
    """With a decay of nearly 1 the average forgets as its warm-up says; the last weights are not it."""
    recipe = dataclasses.replace(RECIPE, epochs=1, ema_decay=0.999)
    averaged = train(data, tmp_path / "averaged", TINY, recipe)
    plain = train(data, tmp_path / "plain", TINY, dataclasses.replace(recipe, ema_decay=None))
    ours, theirs = (load_checkpoint(run.folder / "last").model for run in (averaged, plain))
    assert not torch.equal(ours.head.feature_bank, theirs.head.feature_bank)
    assert averaged.history[0]["train_loss"] == plain.history[0]["train_loss"]
    assert evaluate(ours, data.val).loss == pytest.approx(averaged.history[0]["val_loss"], rel=1e-5)
    assert torch.equal(ours.backbone.norm.num_batches_tracked, theirs.backbone.norm.num_batches_tracked)


def test_every_epoch_is_told_in_a_line(data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(data, tmp_path / "run", TINY, RECIPE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == RECIPE.epochs
    for number, (line, row) in enumerate(zip(lines, run.history, strict=True), 1):
        assert line.startswith(f"epoch {number}/{RECIPE.epochs}: training loss {row['train_loss']:.4f}, accuracy ")
        assert f"validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}" in line
    assert lines[0].endswith(", the best so far")


def test_training_stops_early_without_progress(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=50, learning_rate=0.0, schedule="constant", patience=2)
    run = train(data, tmp_path / "run", TINY, recipe)
    assert len(run.history) < 50
    best = max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert len(run.history) == best["epoch"] + 2
    resumed = train(data, tmp_path / "run", TINY, recipe, resume=True)
    assert resumed.history == run.history


def test_results_have_what_a_comparison_needs(runs: dict[str, TrainResult], data: ImageData) -> None:
    results = json.loads((runs["tversky"].folder / "results.json").read_text())
    assert results["schema_version"] == RESULTS_SCHEMA
    assert results["config"]["model"]["head"] == "tversky"
    assert results["config"]["train"]["epochs"] == RECIPE.epochs
    assert results["config"]["data"]["source"] == data.name
    assert 0 <= results["ece"] <= 1
    assert results["images"] == {"train": 26, "val": 6, "test": 8}
    assert results["parameters"] == sum(p.numel() for p in load_checkpoint(runs["tversky"].best).model.parameters())
    assert results["seconds"] > 0 < results["images_per_second"]


def test_tensorboard_gets_every_epoch(data: ImageData, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, tensorboard=True))
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("epoch/val_loss")] == pytest.approx(
        [row["val_loss"] for row in run.history]
    )
    assert len(events.Scalars("step/loss")) == RECIPE.epochs * 2


def test_what_torch_cannot_do_here_is_one_clear_error(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def fail(error: Exception) -> None:
        def learn(trainer: trainer_module.Trainer, *batch: torch.Tensor) -> None:
            raise error

        monkeypatch.setattr(trainer_module.Trainer, "_learn", learn)

    fail(InternalTorchDynamoError("No working C++ compiler found"))
    with pytest.raises(UsageError, match=r"compile does not work here \(No working C\+\+ compiler.*leave --compile"):
        train(data, tmp_path / "run", TINY, RECIPE)
    fail(RuntimeError("x does not have a deterministic implementation"))
    with pytest.raises(UsageError, match="x does not have a deterministic implementation; leave --deterministic"):
        train(data, tmp_path / "run", TINY, RECIPE)
    for error in (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("Unable to allocate 2 GiB")):
        fail(error)
        with pytest.raises(UsageError, match=r"^out of memory \(.*2 GiB\); lower batch_size .* or image_size, or"):
            train(data, tmp_path / "run", TINY, RECIPE)
    fail(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        train(data, tmp_path / "run", TINY, RECIPE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["add_scalar", "flush", "close", "__init__"])
def test_a_disk_that_is_too_full_for_tensorboard_does_not_end_a_training(
    method: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, method, full)
    run = train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, tensorboard=True))
    assert len(run.history) == RECIPE.epochs
    assert [message for message in caplog.messages if "tensorboard" in message] == [
        f"no more is written to {run.folder / 'tensorboard'} (No space left on device); the training goes on without it"
    ]


def test_tensorboard_that_is_not_installed_is_named(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"run: pip install 'tensorboard<3,>=2.19', or leave it out"):
        train(data, tmp_path / "run", TINY, dataclasses.replace(RECIPE, tensorboard=True))


def test_weights_start_the_backbone_and_bring_their_normalisation(
    runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, learning_rate=0.0, weights=str(runs["linear"].best))
    other = data.normalized((0.1, 0.1, 0.1), (0.9, 0.9, 0.9))
    run = train(other, tmp_path / "run", TINY, recipe)
    ours, theirs = load_checkpoint(run.best), load_checkpoint(runs["linear"].best)
    assert torch.equal(ours.model.backbone.conv2.weight, theirs.model.backbone.conv2.weight)
    assert ours.preprocessing == theirs.preprocessing
