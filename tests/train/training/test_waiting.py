"""The host seldom waits for the device: what it would wait for is read now and then."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPE
from torch.utils._python_dispatch import TorchDispatchMode

from tnn_train import ImageData, ModelConfig, TrainConfig, build_model, load_checkpoint, train
from tnn_train.distributed import Processes
from tnn_train.errors import TrainingError
from tnn_train.training.loop import resolve
from tnn_train.training.shares import Share
from tnn_train.training.stage import set_stage
from tnn_train.training.tally import Tally
from tnn_train.training.trainer import Trainer

TINY = ModelConfig(backbone="tiny", head="linear")
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""The operators that wait for a GPU until it has computed a value."""

RECIPES = {
    "defaults": {},
    "sgd": {"optimizer": "sgd", "clip_norm": 1.0},
    "average": {"ema_decay": 0.9, "accumulate": 2},
    "weighted": {"class_weights": "balanced", "label_smoothing": 0.1},
    "bf16": {"precision": "bf16", "schedule": "cosine", "warmup_epochs": 0.5},
    "fp16": {"precision": "fp16"},
}


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})

    @property
    def count(self) -> int:
        return sum(self.counts[name] for name in READS)


def trainer_on(device: torch.device, data: ImageData, recipe: TrainConfig) -> Trainer:
    model = resolve(TINY, data, recipe)
    stage = set_stage(build_model(model, is_training=True), data, recipe, device)
    return Trainer(stage, data, model, recipe, Processes(0, 1, device))


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_reads_no_value_from_the_device(name: str, data: ImageData) -> None:
    """With fp16 it reads whether it was skipped, on which the next learning rate hangs.

    The number of updates of an average is on the host.
    """
    most = 1 if name in ("fp16", "average") else 0
    trainer = trainer_on(torch.device("cpu"), data, dataclasses.replace(RECIPE, batch_size=8, **RECIPES[name]))
    trainer.stage.learner.train()
    images, labels = next(iter(trainer._loader))
    for _ in range(3):
        with Reads() as reads:
            trainer._learn(images, labels)
            trainer._move()
        assert reads.counts["convolution"] > 0
        assert reads.count <= most, reads.counts


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "fp16"])
def test_a_step_does_not_wait_for_a_gpu(name: str, data: ImageData) -> None:
    trainer = trainer_on(torch.device("cuda"), data, dataclasses.replace(RECIPE, batch_size=4, **RECIPES[name]))
    trainer.stage.learner.train()
    images, labels = next(iter(trainer._loader))
    trainer._learn(images, labels)
    trainer._move()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._learn(images, labels)
            trainer._move()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def looking_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host look at several batches at once, as on a GPU."""
    monkeypatch.setattr(Tally, "is_due", property(lambda tally: len(tally._unseen) >= 3))


@pytest.mark.parametrize("name", ["defaults", "average", "weighted"])
def test_looking_late_changes_nothing(
    name: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=4, save_steps=2, **RECIPES[name])
    soon = train(data, tmp_path / "soon", TINY, recipe)
    looking_late(monkeypatch)
    late = train(data, tmp_path / "late", TINY, recipe)
    timing = {"seconds", "images_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in run.history] for run in (soon, late)]
    assert rows[0] == rows[1]
    ours, theirs = (load_checkpoint(run.folder / "last").model.state_dict() for run in (soon, late))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_loss_that_is_no_number_is_named_and_never_saved(
    step: int, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking_late(monkeypatch)
    learn = Trainer._learn

    def broken(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> None:
        if trainer.step == step - 1:
            with torch.no_grad():
                trainer.stage.model.head.weight.fill_(float("nan"))
        learn(trainer, images, labels)

    monkeypatch.setattr(Trainer, "_learn", broken)
    recipe = dataclasses.replace(RECIPE, batch_size=4, save_steps=1)
    with pytest.raises(TrainingError, match=f"the loss is nan at epoch 1, step {step}; earlier checkpoints are kept"):
        train(data, tmp_path / "run", TINY, recipe)
    if step > 1:
        state = load_checkpoint(tmp_path / "run" / "last").model.state_dict()
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_tally_is_due_after_some_batches_on_a_gpu_and_after_each_on_the_cpu() -> None:
    for kind, most in (("cpu", 1), ("cuda", 8)):
        tally = Tally(torch.device(kind))
        for batch in range(1, most + 1):
            assert not tally.is_due
            tally.add((1, batch), torch.tensor(0.5), torch.tensor(3), Share(0.5, 4.0, 5))
        assert tally.is_due
        assert tally.sums.tolist() == [0, 0, 0]
        tally.look()
        assert tally.is_seen
        assert not tally.is_due
        assert tally.sums.tolist() == [2.0 * most, 3 * most, 5 * most]
