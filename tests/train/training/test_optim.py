from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from tnn_train import LinearHead, ModelConfig, TrainConfig, TverskyConfig, TverskyHead, build_model
from tnn_train.training.optim import Schedule, build_optimizer
from tnn_train.training.recipe import OPTIMIZERS, SCHEDULES


def rates(epochs: int = 4, steps: int = 5, losses: tuple[float, ...] = (1.0,) * 99, **options: object) -> list[float]:
    """Return the learning rate of every step."""
    config = TrainConfig(epochs=epochs, learning_rate=0.1, **options)  # type: ignore[arg-type]
    model = LinearHead(2, 2)
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


def test_a_head_has_parameters_with_rates_of_their_own_and_without_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TverskyHead, "rates", lambda head: {"prototypes": 0.1, "raw_alpha": 2.0})
    monkeypatch.setattr(TverskyHead, "undecayed", lambda head: ["feature_bank"])
    model = build_model(ModelConfig(tversky=TverskyConfig(model="ratio")))
    optimizer = build_optimizer(model, model.head, TrainConfig(learning_rate=0.1, head_learning_rate=0.3))
    found = {
        id(parameter): (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {"prototypes": (0.03, 0.05), "raw_alpha": (0.6, 0.0), "feature_bank": (0.3, 0.0), "raw_beta": (0.3, 0.0)}
    assert {name: found[id(model.head.get_parameter(name))] for name in expected} == expected


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(ModelConfig())
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, model.head, TrainConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.head.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves(name: str) -> None:
    model = LinearHead(2, 2)
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


@pytest.mark.parametrize(("warmup", "decay"), [(4.0, 1), (2.5, 1), (3.0, 2), (0.5, 1), (6.0, 3)])
def test_a_plateau_is_looked_for_after_the_warm_up(warmup: float, decay: int) -> None:
    """Without any progress, the rate rises, stays for as long as it may, and falls; as epoch by epoch by hand."""
    rise, steps, epochs = round(warmup * 4), 4, 12
    expected, peak, bad, best = [], 0.1, 0, math.inf
    for epoch in range(epochs):
        expected += [
            0.1 * (0.01 + 0.99 * step / rise) if step < rise else peak
            for step in range(epoch * steps, (epoch + 1) * steps)
        ]
        if (epoch + 1) * steps >= rise:
            bad = 0 if best == math.inf else bad + 1
            best = 1.0
            if bad > decay:
                peak, bad = peak / 10, 0
    seen = rates(epochs=epochs, steps=steps, schedule="plateau", warmup_epochs=warmup, decay_epochs=decay)
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "plateau", "constant"])
def test_the_only_step_of_a_training_has_the_rate_that_was_asked_for(schedule: str) -> None:
    assert rates(epochs=1, steps=1, schedule=schedule) == [0.1]


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(3, 5, 2.95), (2, 1, 0.5), (2, 2, 0.1), (4, 5, 0.01)])
def test_a_warm_up_begins_below_the_peak_and_gets_there(epochs: int, steps: int, warmup: float) -> None:
    for schedule in ("cosine", "step", "plateau", "constant"):
        seen = rates(epochs=epochs, steps=steps, schedule=schedule, warmup_epochs=warmup)
        assert seen[0] == pytest.approx(0.001)
        assert max(seen) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_leaves_the_momentum_alone(name: str, momentum: float, schedule: str) -> None:
    config = TrainConfig(optimizer=name, momentum=momentum, schedule=schedule)
    model = LinearHead(2, 2)
    optimizer = build_optimizer(model, model, config)
    steps = Schedule(optimizer, config, 5)
    for _ in range(20):
        for group in optimizer.param_groups:
            assert group["momentum"] == momentum if name == "sgd" else group["betas"] == (0.9, 0.999)
        optimizer.step()
        steps.after_step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_whose_momentum_was_cycled_goes_on_with_that(name: str) -> None:
    """Older versions did so, and what they have begun is to end as they would have ended it."""
    model = LinearHead(2, 2)
    config = TrainConfig(epochs=4, optimizer=name)

    def momenta(optimizer: torch.optim.Optimizer, step: Callable[[], None], count: int) -> list[float]:
        seen = []
        for _ in range(count):
            group = optimizer.param_groups[0]
            seen.append(group["momentum"] if name == "sgd" else group["betas"][0])
            optimizer.step()
            step()
        return seen

    def cycled() -> tuple[torch.optim.Optimizer, OneCycleLR]:
        optimizer = build_optimizer(model, model, config)
        return optimizer, OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=20)

    optimizer, old = cycled()
    whole = momenta(optimizer, old.step, 20)
    assert len(set(whole)) > 5
    optimizer, old = cycled()
    momenta(optimizer, old.step, 7)
    states = copy.deepcopy((optimizer.state_dict(), {"by_step": old.state_dict(), "by_epoch": None}))
    optimizer = build_optimizer(model, model, config)
    new = Schedule(optimizer, config, 5)
    optimizer.load_state_dict(states[0])
    new.load_state_dict(states[1])
    assert momenta(optimizer, new.after_step, 13) == whole[7:]


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("skipped", [1, 3])
def test_momentum_starts_from_0_where_the_first_steps_are_skipped(skipped: int, momentum: float) -> None:
    """Freed memory is full of other numbers, which a buffer that was never written would have."""
    model, plain = LinearHead(64, 64), nn.Linear(64, 64)
    plain.load_state_dict(model.state_dict())
    config = TrainConfig(optimizer="sgd", momentum=momentum, weight_decay=0.0, learning_rate=0.1)
    optimizer = build_optimizer(model, model, config)
    reference = torch.optim.SGD(plain.parameters(), 0.1, momentum, nesterov=True, foreach=False)
    scaler = torch.amp.GradScaler("cpu")
    junk = [torch.full((64, 64), -1000.0) for _ in range(50)]
    del junk
    for step in range(skipped + 3):
        inputs = torch.randn(4, 64)
        scaler.scale(model(inputs).square().mean() * (math.inf if step < skipped else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step >= skipped:
            reference.zero_grad()
            plain(inputs).square().mean().backward()
            reference.step()
    torch.testing.assert_close(model.weight, plain.weight)


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
    model = LinearHead(2, 2)

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
