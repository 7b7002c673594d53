"""The training loop of a textbook, with which the trainer is compared: plain PyTorch, one process, no tricks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from tnn_train import ImageData, ModelConfig, TrainConfig, build_model
from tnn_train.model.image_model import Normalize
from tnn_train.training.loop import resolve

__all__ = ["PlainRun", "train_plainly"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class PlainRun:
    """What a training came to.

    Args:
        start: The model before its training.
        model: The trained model.
        average: The moving average of its weights; the model itself if there is to be none.
        losses: The mean loss of each epoch.
        norms: The norm of the gradient of each step.
        skipped: How many steps loss scaling has skipped.
    """

    start: nn.Module
    model: nn.Module
    average: nn.Module
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0

    def distance(self, other: nn.Module) -> float:
        """Return how far another model is from the average, as a share of how far that has come from the start."""
        start, ours, theirs = (
            torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])
            for model in (self.start, self.average, other)
        )
        return float((theirs - ours).norm() / (ours - start).norm())


def train_plainly(data: ImageData, model: ModelConfig, config: TrainConfig) -> PlainRun:
    """Train a model: sgd or adamw, a constant rate or one cycle; without weight decay, augmentations and validation."""
    torch.manual_seed(config.seed)
    network = build_model(resolve(model, data, config), is_training=True).train()
    images = Normalize(data.preprocessing)(torch.from_numpy(data.train.pixels))
    labels = torch.from_numpy(data.train.labels)
    counts = labels.bincount()
    weight = len(labels) / (len(counts) * counts) if config.class_weights == "balanced" else torch.ones(len(counts))
    batches = range(0, len(labels), config.batch_size)
    groups = [batches[start : start + config.accumulate] for start in range(0, len(batches), config.accumulate)]
    if config.optimizer == "sgd":
        momentum = config.momentum
        optimizer = SGD(network.parameters(), config.learning_rate, momentum, nesterov=momentum > 0, foreach=False)
    else:
        optimizer = AdamW(network.parameters(), config.learning_rate, weight_decay=0.0, foreach=False)
    schedule = ConstantLR(optimizer, factor=1.0)
    total = config.epochs * len(groups)
    # torch would make the only step of a training at the lowest rate of the cycle.
    if config.schedule == "one-cycle" and total > 1:
        schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=total, cycle_momentum=False)
    dtype = _DTYPES[config.precision]
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    average = network if config.ema_decay is None else copy.deepcopy(network)
    run = PlainRun(copy.deepcopy(network), network, average)
    moved = 0
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(labels))
        seen = 0.0
        for group in groups:
            # The loss of a step is the weighted mean over all its images, however many batches they come in.
            in_step = [order[start : start + config.batch_size] for start in group]
            losses = []
            for batch in in_step:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    logits = network(images[batch])
                losses.append(functional.cross_entropy(logits.float(), labels[batch], weight, reduction="sum"))
                seen += float(losses[-1].detach() / weight[labels[batch]].sum()) * len(batch)
            loss = sum(losses) / weight[labels[np.concatenate(in_step)]].sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            largest = float("inf") if config.clip_norm is None else config.clip_norm
            run.norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), largest)))
            scaler.step(optimizer)
            scaler.update()
            if dtype == torch.float16 and not np.isfinite(run.norms[-1]):
                run.skipped += 1
                continue
            schedule.step()
            if config.ema_decay is not None:
                decay = min(config.ema_decay, (1 + moved) / (10 + moved)) if moved else 0.0
                for old, new in zip(run.average.state_dict().values(), network.state_dict().values(), strict=True):
                    old.copy_(decay * old + (1 - decay) * new)
            moved += 1
        run.losses.append(seen / len(labels))
    return run
