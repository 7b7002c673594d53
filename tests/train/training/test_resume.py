"""A training that is interrupted, at any moment and in any way, ends as if it had not been."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import forked
import killable
import pytest
import torch
from conftest import RECIPE
from waiting import Clock, until

from tnn_runtime import ArtifactError, UsageError
from tnn_runtime.bundle.storage import stands
from tnn_train import (
    ImageData,
    LvqConfig,
    ModelConfig,
    PartsConfig,
    TrainConfig,
    TverskyConfig,
    load_checkpoint,
    load_data,
    train,
)
from tnn_train.__main__ import main
from tnn_train.run_files import RESULTS_SCHEMA
from tnn_train.training import stopping
from tnn_train.training.identity import identity, refuse_other
from tnn_train.training.loop import TrainResult
from tnn_train.training.run_folder import RunFolder
from tnn_train.training.trainer import Trainer

TINY = ModelConfig(backbone="tiny")

OPERATIONS = 40
"""Saving a checkpoint takes 27 operations on files, and 47 where it is the best one, too."""

RECIPES = {
    "plain": dataclasses.replace(RECIPE, augment=("crop", "flip", "randaugment", "erase")),
    "mixed": dataclasses.replace(RECIPE, augment=("mixup", "cutmix"), label_smoothing=0.1, class_weights="balanced"),
    "averaged": dataclasses.replace(RECIPE, ema_decay=0.99, accumulate=2, clip_norm=1.0),
    "plateau": dataclasses.replace(RECIPE, schedule="plateau", warmup_epochs=1.5, decay_epochs=1, optimizer="sgd"),
    "step": dataclasses.replace(RECIPE, schedule="step", warmup_epochs=0.5, optimizer="adam", precision="bf16"),
    "frozen": dataclasses.replace(RECIPE, augment=None, freeze_backbone=True),
    **dict.fromkeys(("lvq", "logic", "pipnet", "matching"), RECIPE),
}
HEADS = {
    "lvq": ModelConfig("tiny", "lvq", lvq=LvqConfig(prototypes=2, relevances="matrix")),
    "logic": ModelConfig("tiny", "logic"),
    "pipnet": ModelConfig("tiny", "parts", parts=PartsConfig("pipnet")),
    "matching": ModelConfig("tiny", "matching"),
}


def same(one: TrainResult, other: TrainResult) -> None:
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(run.folder / name).model.state_dict() for run in (one, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    timing = {"seconds", "images_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in run.history] for run in (one, other)]
    assert rows[0] == rows[1]
    assert one.test.loss == other.test.loss


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, signal_number: int = signal.SIGTERM) -> Callable[[], None]:
    """Let the process get a signal in the middle of a step."""
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
        learn(trainer, *batch)
        if trainer.step == step:
            os.kill(os.getpid(), signal_number)

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    return lambda: monkeypatch.setattr(Trainer, "_learn", learn)


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_stopped_in_an_epoch_ends_the_same(
    name: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPES[name], batch_size=4, embedding_cache=str(tmp_path / "cache"))
    model = HEADS.get(name, TINY)
    whole = train(data, tmp_path / "whole", model, recipe)
    for step in (3, 9, 14):
        undo = stop_after(step, monkeypatch)
        with pytest.raises(KeyboardInterrupt, match=r"last holds epoch \d, step \d+: repeat the command with --resume"):
            train(data, tmp_path / "parts", model, recipe, resume=step > 3)
        undo()
        torch.randn(7)
    same(train(data, tmp_path / "parts", model, recipe, resume=True), whole)


@pytest.mark.slow
def test_a_training_killed_at_20_moments_ends_the_same(photos: Path, tmp_path: Path) -> None:
    """Each kill comes two batches after the one before, between two of the operations on files that follow."""

    def exit_code(out: Path, moment: killable.Moment | None = None, *, resume: bool = False) -> int:
        return forked.run(killable.run, photos, out, moment, resume).returncode

    assert exit_code(tmp_path / "whole") == 0
    out = tmp_path / "parts"
    for number, operation in enumerate(random.Random(0).sample(range(OPERATIONS), 20)):
        moment = killable.Moment(2 * number + 1, operation)
        assert exit_code(out, moment, resume=stands(out / "last")) == -signal.SIGKILL
    assert exit_code(out, resume=True) == 0
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(tmp_path / run / name).model.state_dict() for run in ("parts", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def to_process(process: forked.Program, number: int) -> None:
    process.send_signal(number)


def to_group(process: forked.Program, number: int) -> None:
    os.killpg(process.pid, number)


def to_each(process: forked.Program, number: int) -> None:
    """As ``timeout`` and ``torchrun`` do: to the program, and to all its processes."""
    process.send_signal(number)
    os.killpg(process.pid, number)


@pytest.mark.parametrize(("send", "workers"), [(to_process, 0), (to_group, 2), (to_each, 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(
    number: int, send: Callable[[forked.Program, int], None], workers: int, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--backbone", "tiny"]
    arguments += ["--epochs", "10000", "--save-steps", "1", "--workers", str(workers)]
    process = forked.Program(main, arguments)
    until(lambda: (out / "last").exists() or process.poll() is not None)
    send(process, number)
    result = process.end()
    errors = result.stderr
    assert result.returncode == 130, errors
    assert errors.splitlines()[-1].startswith(f"tnn-train: interrupted; {out}/last holds epoch ")
    assert "--resume" in errors.splitlines()[-1]
    load_checkpoint(out / "last")


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,) * 2, (signal.SIGINT,) * 3, (signal.SIGINT, signal.SIGTERM)])
@pytest.mark.parametrize(("seconds", "is_saved"), [(0.0, True), (0.5, True), (3.0, False)])
def test_a_second_signal_does_not_wait_unless_it_comes_with_the_first(
    seconds: float,
    is_saved: bool,
    numbers: tuple[int, ...],
    data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``timeout`` and ``torchrun`` send the same signal twice."""
    clock = Clock(monkeypatch, stopping)
    learn = Trainer._learn

    def interrupted(trainer: Trainer, *batch: torch.Tensor) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            clock.now += seconds
        learn(trainer, *batch)

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", TINY, RECIPE)
    assert (tmp_path / "run" / "last").exists() == is_saved


def test_a_thread_that_is_not_the_main_one_can_train(data: ImageData, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(data, tmp_path / "run", TINY, RECIPE))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "results.json").exists()


def test_another_training_is_not_resumed(runs: dict[str, TrainResult], data: ImageData) -> None:
    other = dataclasses.replace(RECIPE, learning_rate=0.5, ema_decay=0.9)
    model = ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=17))
    with pytest.raises(UsageError) as error:
        train(data, runs["tversky"].folder, model, other, resume=True)
    message = str(error.value)
    assert "last belongs to another training (" in message
    for part in ("learning_rate: was 0.01, now 0.5", "ema_decay: was None, now 0.9", "num_features: was 16, now 17"):
        assert part in message
    assert message.endswith("; repeat its options to resume it")


@pytest.mark.parametrize("option", ["smooth", "thresholds", "fixed", "prototype_init"])
def test_an_option_that_an_earlier_version_had_not_has_its_default(option: str, data: ImageData) -> None:
    now = json.loads(identity(data, TINY, RECIPE))
    before = copy.deepcopy(now)
    del before["model"]["tversky"][option]
    refuse_other(json.dumps(now), json.dumps(before), "last")
    now["model"]["tversky"][option] = "another"
    with pytest.raises(UsageError, match=rf"{option}: was .*, now another\); repeat its options to resume it"):
        refuse_other(json.dumps(now), json.dumps(before), "last")


def test_what_cannot_be_resumed_says_what_to_do(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = train(data, tmp_path / "run", TINY, recipe)
    with pytest.raises(UsageError, match="got both --resume and --overwrite"):
        train(data, run.folder, TINY, recipe, resume=True, overwrite=True)
    (run.folder / "metrics.jsonl").unlink()
    train(data, run.folder, TINY, recipe, resume=True)
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 1
    weights = run.folder / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=r"truncated.*or train again with --overwrite; .*--weights .*best"):
        train(data, run.folder, TINY, recipe, resume=True)
    run = train(data, tmp_path / "run", TINY, recipe, overwrite=True)
    shutil.rmtree(run.best)
    with pytest.raises(UsageError, match="run has lost its best and cannot be resumed; train again with --overwrite"):
        train(data, run.folder, TINY, recipe, resume=True)


def test_steps_of_several_batches_do_not_miss_a_save(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = RunFolder.save
    monkeypatch.setattr(
        RunFolder, "save", lambda run, *, is_urgent: saved.append(run.trainer.step) or save(run, is_urgent=is_urgent)
    )
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=4, accumulate=2, save_steps=3)
    train(data, tmp_path / "run", TINY, recipe)
    assert sorted(set(saved)) == [4, 6, 7]


def test_other_images_are_told_apart(data: ImageData, photos: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    train(data, tmp_path / "run", TINY, recipe)
    with pytest.raises(UsageError, match=r"last belongs to another training \(data.seed: was 0, now 1; .*\); repeat"):
        train(load_data(photos, seed=1), tmp_path / "run", TINY, recipe, resume=True)


def test_what_has_no_influence_may_change(data: ImageData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    one = train(data, tmp_path / "run", TINY, recipe)
    other = dataclasses.replace(recipe, threads=1, workers=0, save_steps=3, tensorboard=True)
    same(one, train(data, tmp_path / "run", TINY, other, resume=True))


def test_a_full_disk_leaves_the_last_checkpoint(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", str(photos), "--out", str(out), "--backbone", "tiny", "--epochs", "2", "--save-steps", "1"]
    result = forked.run(killable.on_a_small_disk, arguments)
    assert result.returncode == 1
    assert "tnn-train: error: the system refused a file (File too large" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    load_checkpoint(out / "last")
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
    assert forked.run(main, [*arguments, "--resume"]).returncode == 0
    assert json.loads((out / "results.json").read_text())["schema_version"] == RESULTS_SCHEMA


def test_the_whole_configuration_is_in_the_checkpoint(runs: dict[str, TrainResult], data: ImageData) -> None:
    training = load_checkpoint(runs["tversky"].best).training
    assert training["train"] == json.loads(json.dumps(dataclasses.asdict(RECIPE)))
    assert training["data"] == json.loads(json.dumps(dataclasses.asdict(data.config)))
    assert training["model"]["tversky"]["num_features"] == 16
    assert TrainConfig(**{**training["train"], "augment": tuple(training["train"]["augment"])}) == RECIPE
