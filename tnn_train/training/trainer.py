"""One training: its state, its steps and its epochs. What is random follows from the seed and the position alone."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from tnn_train.data import ImageData
from tnn_train.data.augment import derived_seed, mixing
from tnn_train.data.loader import EpochBatches, training_loader
from tnn_train.distributed import Processes
from tnn_train.errors import TrainingError
from tnn_train.evaluation.metrics import Evaluation, best_epoch
from tnn_train.evaluation.scoring import score
from tnn_train.heads import Head
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel
from tnn_train.training.identity import identity, refuse_other
from tnn_train.training.optim import Schedule, build_optimizer, exchange_parameters
from tnn_train.training.recipe import TrainConfig, speed_unit
from tnn_train.training.stage import Stage

__all__ = ["Trainer"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Trainer:
    """All that changes during a training, so that it can be saved and restored.

    Args:
        stage: What is trained, and on what.
        data: Where it comes from.
        model_config: What the model was built from.
        config: The recipe.
        processes: The processes that train together.

    Attributes:
        epoch: Whole epochs that are done.
        batch: Batches of the running epoch that are done.
        history: One dictionary for each whole epoch, as in ``metrics.jsonl``.
        best: The model after the best epoch, if that was in this process's time.
    """

    def __init__(
        self, stage: Stage, data: ImageData, model_config: ModelConfig, config: TrainConfig, processes: Processes
    ) -> None:
        self.stage, self.data, self.model_config, self.config = stage, data, model_config, config
        self.processes, self.device = processes, processes.device
        self.epoch, self.batch, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.best: ImageModel | None = None
        self._unit = speed_unit(frozen=config.freeze_backbone)
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._batches = self._order(processes.rank, processes.count)
        self._loader = training_loader(stage.train, self._batches, config.workers)
        self._average = None if config.ema_decay is None else _average(stage.learner, config.ema_decay)
        self._forward = self._prepared()
        self._optimizer = build_optimizer(stage.learner, stage.model.head, config)
        self._schedule = Schedule(self._optimizer, config, self._moves_of_an_epoch)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._mix = mixing(config.augmentations, len(data.class_names))
        self._class_weights = _class_weights(data, self.device) if config.class_weights == "balanced" else None

    @property
    def model(self) -> ImageModel:
        """The model as it is validated and saved: the average of the weights, if there is one."""
        return self.stage.whole(self._judged)

    @property
    def step(self) -> int:
        """Batches that are done since the training began."""
        return self.epoch * len(self._batches) + self.batch

    @property
    def mean_loss(self) -> float:
        """The mean loss of the running epoch so far, of this process."""
        return float(self._sums[0] / self._sums[2])

    @property
    def best_row(self) -> dict[str, Any]:
        """The row of the best epoch by validation."""
        return best_epoch(self.history)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or validation has not improved for long enough."""
        waited = self.epoch - self.best_row["epoch"] if self.history else 0
        return self.epoch >= self.config.epochs or (self.config.patience is not None and waited >= self.config.patience)

    def start(self) -> None:
        """Let the head start from the training images, if it wants to.

        Batch norm works as in training, so that the embeddings are those of the first epoch.
        """
        self._go_final_in_time()
        loader = training_loader(self.stage.train, self._order(0, 1), self.config.workers)
        self.stage.learner.train()

        def embeddings() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in tqdm(
                loader, desc="start of the head", unit="batch", disable=None, leave=False, delay=2
            ):
                yield self.stage.embed(self.stage.prepare(images.to(self.device))), labels

        with torch.no_grad():
            self.stage.model.head.start(embeddings())

    def steps(self) -> Iterator[None]:
        """Train to the end of the running epoch, and pause after each step of the optimizer."""
        self.stage.learner.train()
        self._batches.set_position(self.epoch, self.batch)
        started = time.perf_counter() - self.seconds
        progress = tqdm(
            self._loader,
            desc=f"epoch {self.epoch + 1}/{self.config.epochs}",
            unit="batch",
            initial=self.batch,
            total=len(self._batches),
            disable=None if self.processes.is_first else True,
        )
        with progress:
            for images, labels in progress:
                self._learn(images, labels)
                self.seconds = time.perf_counter() - started
                if self.batch % self.config.accumulate == 0 or self.batch == len(self._batches):
                    self._move()
                    yield
                loss, right, seen = self._sums.tolist()
                progress.set_postfix_str(
                    f"loss {loss / seen:.3f}, accuracy {right / seen:.3f}, "
                    f"{seen * self.processes.count / self.seconds:.0f} {self._unit}"
                )

    def end_epoch(self) -> None:
        """Validate, and enter the epoch in the history."""
        loss, right, seen = self._total().tolist()
        val = self.evaluate(self.model, "val")
        if not math.isfinite(val.loss):
            raise _diverged(val.loss, f"the validation after epoch {self.epoch + 1}")
        rate = self._optimizer.param_groups[0]["lr"]
        self._schedule.after_epoch(val.loss)
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": loss / seen,
                "train_accuracy": right / seen,
                "val_loss": val.loss,
                "val_accuracy": val.accuracy,
                "learning_rate": rate,
                "seconds": self.seconds,
                "images_per_second": seen / self.seconds,
            }
        )
        is_best = self.best_row is self.history[-1]
        if self.processes.is_first:
            tqdm.write(self._line(self.history[-1]) + (", the best so far" if is_best else ""))
        if is_best:
            self.best = self.stage.snapshot(self._judged)
        self.batch, self.seconds = 0, 0.0
        self._sums.zero_()

    def evaluate(self, model: ImageModel, part: str) -> Evaluation:
        """Evaluate a model made by `Stage.whole` on the part ``"val"`` or ``"test"`` of the data."""
        learner = model if self.stage.learner is self.stage.model else model.head
        return score(learner, self.stage.prepare, getattr(self.stage, part), self.processes)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs beside the saved model."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._total(),
            "seconds": self.seconds,
            "history": json.dumps(self.history),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "is_final": self._is_final,
            "learner": None if self._average is None and self._is_final else self.stage.learner.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "identity": self._identity(),
        }

    def restore(self, model: ImageModel, state: dict[str, Any], name: str) -> None:
        """Go on from a saved model and state.

        Args:
            model: The model that was saved with the state.
            state: What `state` returned.
            name: What to call it in an error.

        Raises:
            UsageError: If it belongs to another training; the message lists what differs.
        """
        refuse_other(self._identity(), state["identity"], name)
        if state.get("is_final", True) and not self._is_final:
            self._exchange_heads(copy.deepcopy(model.head), copy.deepcopy(model.head))
        if state["learner"] is None:
            self.stage.model.load_state_dict(model.state_dict())
        else:
            self.stage.learner.load_state_dict(state["learner"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        self.history = json.loads(state["history"])
        if self.processes.is_first:
            self._sums = state["sums"]

    @property
    def _is_final(self) -> bool:
        """Whether the head has the form in which it is saved."""
        return self.stage.model.head.final_from is None

    @property
    def _moves_of_an_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""
        return math.ceil(len(self._batches) / self.config.accumulate)

    def _go_final_in_time(self) -> None:
        """Bring the head into its final form if so many steps are done."""
        head = self.stage.model.head
        if head.final_from is None:
            return
        moves = self.epoch * self._moves_of_an_epoch + math.ceil(self.batch / self.config.accumulate)
        if moves < round(head.final_from * self.config.epochs * self._moves_of_an_epoch):
            return
        if self._average is None:
            self._exchange_heads(head.final_form())
        else:
            average = self.stage.whole(self._average.module).head.final_form()
            self._exchange_heads(head.final_form(like=average), average)

    def _exchange_heads(self, head: Head, average: Head | None = None) -> None:
        """Go on with another head, and in the average of the weights with yet another."""
        mode = self.stage.learner.training
        inherited = self.stage.model.head.inherited(head)
        # Its hooks on the backbone must be gone before there are others.
        del self._forward
        if self._average is not None and average is not None:
            learner = self._average.module
            assert isinstance(learner, nn.Module)
            whole = self.stage.whole(learner)
            average = average.to(self.device).requires_grad_(False)
            self._average.module = average if learner is whole.head else ImageModel(whole.backbone, average)
        self.stage = self.stage.with_head(head.to(self.device))
        self.stage.learner.train(mode)
        exchange_parameters(self._optimizer, self.stage.learner, head, self.config, inherited)
        self._forward = self._prepared()

    def _prepared(self) -> nn.Module:
        """Return the learner, compiled and together with other processes as the recipe asks."""
        forward = self.processes.wrap(self.stage.learner)
        if self.config.compile:
            forward.compile()
        return forward

    @property
    def _judged(self) -> nn.Module:
        return self.stage.learner if self._average is None else self._average.module

    def _identity(self) -> str:
        return identity(self.data, self.model_config, self.config)

    def _order(self, rank: int, count: int) -> EpochBatches:
        return EpochBatches(len(self.data.train), self.config.batch_size, self.config.seed, rank, count)

    def _learn(self, images: Tensor, labels: Tensor) -> None:
        """Add the gradients of one batch."""
        torch.manual_seed(derived_seed(self.config.seed, self.epoch, self.batch, self.processes.rank))
        images, labels = images.to(self.device), labels.to(self.device)
        with torch.no_grad():
            inputs = self.stage.prepare(images)
        targets = labels
        if self._mix is not None:
            inputs, targets = self._mix(inputs, labels)
        dtype = _DTYPES[self.config.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits = self._forward(inputs)
        head = self.stage.model.head
        loss = head.loss(logits.float(), targets, self._class_weights, self.config.label_smoothing) + head.penalty()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(value, f"epoch {self.epoch + 1}, step {self.batch + 1}")
        whole = min(self.config.batch_size, len(self.data.train) - self.batch * self.config.batch_size)
        share = len(labels) * self.processes.count / whole
        self._scaler.scale(loss * (share / self.config.accumulate)).backward()  # type: ignore[no-untyped-call]
        self.batch += 1
        right = int((logits.argmax(1) == labels).sum())
        self._sums += torch.tensor([value * len(labels), right, len(labels)], dtype=torch.float64)

    def _move(self) -> None:
        """Let the optimizer make its step."""
        if self.config.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.stage.learner.parameters(), self.config.clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        if self._scaler.get_scale() >= scale:
            self._schedule.after_step()
        if self._average is not None:
            self._average.update_parameters(self.stage.learner)
        self._go_final_in_time()

    def _line(self, row: dict[str, Any]) -> str:
        """Return an epoch in one line."""
        return (
            f"epoch {row['epoch']}/{self.config.epochs}: training loss {row['train_loss']:.4f}, accuracy "
            f"{row['train_accuracy']:.4f}, {row['images_per_second']:.0f} {self._unit}; validation loss "
            f"{row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}"
        )

    def _total(self) -> Tensor:
        """Return sums over the running epoch and all processes: of losses, right answers and images."""
        return self.processes.sum(self._sums.clone()).cpu()


def _average(learner: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average, which forgets faster at the start, so that random weights do not linger."""

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        return old + (new - old) * share if old.is_floating_point() else new

    return AveragedModel(learner, avg_fn=average, use_buffers=True)


def _class_weights(data: ImageData, device: torch.device) -> Tensor:
    weights = compute_class_weight("balanced", classes=np.arange(len(data.class_names)), y=data.train.labels)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _diverged(loss: float, where: str) -> TrainingError:
    return TrainingError(
        f"the loss is {loss} at {where}; earlier checkpoints are kept; try a lower learning rate, or clip_norm "
        "(--clip-norm 1)"
    )
