from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from tnn_train import ModelConfig, TrainConfig, TverskyConfig, build_model
from tnn_train.training.optim import Schedule, build_optimizer
from tnn_train.training.recipe import OPTIMIZERS, SCHEDULES


def rates(epochs: int = 4, steps: int = 5, losses: tuple[float, ...] = (1.0,) * 99, **options: object) -> list[float]:
    """Return the learning rate of every step."""
    config = TrainConfig(epochs=epochs, learning_rate=0.1, **options)  # type: ignore[arg-type]
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, model, config)
    schedule = Schedule(optimizer, config, steps)
    seen = []
    for epoch in range(epochs):
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(losses[epoch])
    return seen


def test_only_matrices_and_kernels_decay_and_the_head_has_its_own_rate() -> None:
    model = build_model(ModelConfig(tversky=TverskyConfig(model="ratio", num_prototypes=6)))
    optimizer = build_optimizer(model, model.head, TrainConfig(learning_rate=0.1, head_learning_rate=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(found) == set(names.values())
    assert found["backbone.conv1.weight"] == (0.1, 0.05)
    assert found["backbone.bn1.weight"] == found["backbone.bn1.bias"] == (0.1, 0.0)
    assert found["head.prototypes"] == found["head.feature_bank"] == found["head.linear.weight"] == (0.3, 0.05)
    for name in ("raw_alpha", "raw_beta", "raw_theta", "raw_logit_scale", "linear.bias"):
        assert found[f"head.{name}"] == (0.3, 0.0)


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(ModelConfig())
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, model.head, TrainConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.head.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves(name: str) -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.weight)
    optimizer = build_optimizer(model, model, TrainConfig(optimizer=name))
    model(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
    assert type(optimizer).__name__.lower() == name
    assert not torch.equal(model.weight, before)


def test_cosine_falls_to_nothing_after_a_linear_rise() -> None:
    seen = rates(schedule="cosine", warmup_epochs=1.0)
    assert seen[0] == pytest.approx(0.001)
    assert seen[:6] == pytest.approx([0.001 + (0.1 - 0.001) * step / 5 for step in range(6)])
    assert seen[5:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 15)) for step in range(15)])


def test_steps_fall_by_the_factor() -> None:
    seen = rates(schedule="step", decay_epochs=2, decay_factor=0.5)
    assert seen == pytest.approx([0.1] * 10 + [0.05] * 10)


def test_a_plateau_falls_after_epochs_without_a_better_loss() -> None:
    losses = (1.0, 0.9, 0.95, 0.95, 0.95, 0.95)
    seen = rates(epochs=6, schedule="plateau", decay_epochs=1, warmup_epochs=1.0, losses=losses)
    assert seen[5::5] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01])


def test_constant_is_constant_and_one_cycle_rises_and_falls() -> None:
    assert rates(schedule="constant") == pytest.approx([0.1] * 20)
    seen = rates(schedule="one-cycle")
    assert max(seen) == pytest.approx(0.1)
    assert seen[0] < 0.01 > seen[-1]


@pytest.mark.parametrize(("schedule", "warmup"), [*itertools.product(SCHEDULES, (0.0, 0.5))])
def test_a_restored_schedule_goes_on(schedule: str, warmup: float) -> None:
    if schedule == "one-cycle" and warmup:
        return
    config = TrainConfig(epochs=3, schedule=schedule, warmup_epochs=warmup, decay_epochs=1)
    model = nn.Linear(2, 2)

    def start() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = build_optimizer(model, model, config)
        return optimizer, Schedule(optimizer, config, 4)

    def go(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: range) -> list[float]:
        seen = []
        for step in steps:
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
            if step % 4 == 3:
                schedule.after_epoch(1.0)
        return seen

    whole = go(*start(), range(12))
    optimizer, first = start()
    assert go(optimizer, first, range(6)) == whole[:6]
    state = copy.deepcopy((optimizer.state_dict(), first.state_dict()))
    optimizer, second = start()
    optimizer.load_state_dict(state[0])
    second.load_state_dict(state[1])
    assert go(optimizer, second, range(6, 12)) == whole[6:]
