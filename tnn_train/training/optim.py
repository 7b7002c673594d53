"""From the recipe to torch's optimizers and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from tnn_train.heads import Head
from tnn_train.model.learned_images import LearnedImages
from tnn_train.training.recipe import TrainConfig

__all__ = ["Schedule", "build_optimizer", "exchange_parameters"]

Inherited = Sequence[tuple[nn.Parameter, Tensor, Tensor]]

_START = 1e-2
"""The share of the learning rate at which a warm-up starts."""


def build_optimizer(model: nn.Module, head: Head, config: TrainConfig) -> Optimizer:
    """Build the optimizer of all parameters of ``model`` that want a gradient.

    Args:
        model: What is trained.
        head: The part of it that has ``config.head_learning_rate``.
        config: The recipe.
    """
    parameters: list[dict[str, Any]] = [
        {"params": group, "lr": rate, "weight_decay": decay}
        for (rate, decay), group in _groups(model, head, config).items()
    ]
    if config.optimizer == "sgd":
        sgd = SGD(parameters, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=True)
        _start_momentum(sgd)
        return sgd
    return (Adam if config.optimizer == "adam" else AdamW)(parameters, config.learning_rate, fused=True)


def exchange_parameters(
    optimizer: Optimizer, model: nn.Module, head: Head, config: TrainConfig, inherited: Inherited
) -> None:
    """Let an optimizer go on with a model that has another head; what it knows of the other parameters stays.

    Args:
        optimizer: Built by `build_optimizer` with the same recipe.
        model: What is trained from now on.
        head: The part of it that is new.
        config: The recipe.
        inherited: What `Head.inherited` of the head before says: which gradients follow from which.
    """
    for new, old, matrix in inherited:
        if old in optimizer.state:
            optimizer.state[new] = {
                name: _inherited(name, value, matrix) for name, value in optimizer.state[old].items()
            }
    for group, parameters in zip(optimizer.param_groups, _groups(model, head, config).values(), strict=True):
        group["params"] = parameters
    kept = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]
    if isinstance(optimizer, SGD):
        _start_momentum(optimizer)


def _start_momentum(optimizer: SGD) -> None:
    """Give a momentum of 0 to each parameter that has none.

    That is what torch starts from, too. But its fused SGD wants all parameters to have a momentum, or none, and where
    the loss scaling of fp16 skips the first step, it goes on with memory that was never written.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter not in optimizer.state:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _inherited(name: str, value: Any, matrix: Tensor) -> Any:
    """Return what the state of an old parameter is for a new one, whose gradients are ``matrix`` times the old ones.

    Means of gradients follow exactly. Means of their squares do where the gradients in a sum are independent.
    """
    if name in ("exp_avg", "momentum_buffer"):
        return matrix.to(value) @ value
    return matrix.square().to(value) @ value if name == "exp_avg_sq" else value.clone()


def _groups(model: nn.Module, head: Head, config: TrainConfig) -> dict[tuple[float, float], list[nn.Parameter]]:
    """Return the parameters that want a gradient, by their learning rate and weight decay."""
    images = [module for module in model.modules() if isinstance(module, LearnedImages)]
    of_images = {id(parameter) for module in images for parameter in module.parameters()}
    of_head = {id(parameter) for parameter in head.parameters()} | of_images
    factors = {id(head.get_parameter(name)): factor for name, factor in head.rates().items()}
    undecayed = of_images | {id(head.get_parameter(name)) for name in head.undecayed()}
    head_rate = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = head_rate if id(parameter) in of_head else config.learning_rate
            rate *= factors.get(id(parameter), 1.0)
            decay = config.weight_decay if parameter.ndim > 1 and id(parameter) not in undecayed else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return groups


class Schedule:
    """The learning rate over the steps of the optimizer and, for ``"plateau"``, over the epochs.

    A plateau is looked for after the warm-up only: in it, the rate is not what it is meant to be yet.

    Args:
        optimizer: Whose rates are set.
        config: The recipe.
        steps: Steps of the optimizer in an epoch.
    """

    def __init__(self, optimizer: Optimizer, config: TrainConfig, steps: int) -> None:
        self._rise = _rise(config, steps)
        self._by_step = _by_step(optimizer, config, steps, self._rise)
        self._by_epoch = (
            ReduceLROnPlateau(optimizer, factor=config.decay_factor, patience=config.decay_epochs)
            if config.schedule == "plateau"
            else None
        )

    def after_step(self) -> None:
        """Go on by one step."""
        self._by_step.step()

    def after_epoch(self, val_loss: float) -> None:
        """Go on by one epoch."""
        if self._by_epoch is not None and self._by_step.last_epoch >= self._rise:
            self._by_epoch.step(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` restores."""
        return {
            "by_step": self._by_step.state_dict(),
            "by_epoch": None if self._by_epoch is None else self._by_epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._by_step.load_state_dict(state["by_step"])
        if self._by_epoch is not None:
            self._by_epoch.load_state_dict(state["by_epoch"])


def _rise(config: TrainConfig, steps: int) -> int:
    """Return the steps of the warm-up: at least one if there is to be any, and not all."""
    if not config.warmup_epochs:
        return 0
    return min(max(1, round(config.warmup_epochs * steps)), config.epochs * steps - 1)


def _by_step(optimizer: Optimizer, config: TrainConfig, steps: int, rise: int) -> LRScheduler:
    total = config.epochs * steps
    # A cycle of one step would begin, and end, at its lowest rate.
    if config.schedule == "one-cycle" and total > 1:
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=total, cycle_momentum=False)
    later: LRScheduler
    if config.schedule == "cosine":
        later = CosineAnnealingLR(optimizer, total - rise)
    elif config.schedule == "step":
        later = StepLR(optimizer, config.decay_epochs * steps, config.decay_factor)
    else:
        later = ConstantLR(optimizer, factor=1.0)
    if not rise:
        return later
    return SequentialLR(optimizer, [LinearLR(optimizer, _START, total_iters=rise), later], [rise])
