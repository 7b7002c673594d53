"""One training: its state, its steps and its epochs. What is random follows from the seed and the position alone."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tnn_train.data import ImageData, ImageSet
from tnn_train.data.augment import derived_seed, mixing
from tnn_train.data.loader import EpochBatches, evaluation_loader, training_loader
from tnn_train.distributed import Processes
from tnn_train.errors import TrainingError
from tnn_train.evaluation.metrics import Evaluation, best_epoch
from tnn_train.evaluation.scoring import score
from tnn_train.heads import Head
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel
from tnn_train.training.average import MovingAverage
from tnn_train.training.hierarchy import hierarchy_loss
from tnn_train.training.identity import identity, refuse_other
from tnn_train.training.image_start import start_images
from tnn_train.training.optim import Schedule, build_optimizer, exchange_parameters
from tnn_train.training.recipe import TrainConfig, speed_unit
from tnn_train.training.shares import Shares, balanced_weights
from tnn_train.training.stage import Answering, Stage
from tnn_train.training.tally import Tally, diverged

__all__ = ["Trainer"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH = 64
_LOWEST_SCALE = 1e-4
"""Below this scale of the loss, gradients in fp16 are infinite for another reason than the scale."""


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
        self._tally = Tally(self.device)
        is_part = processes.count > 1
        self._mix = mixing(config.augmentations, len(data.class_names), with_neighbour=is_part)
        self._batches = self._order(processes.rank, processes.count, with_neighbour=is_part and self._mix is not None)
        self._loader = training_loader(stage.train, self._batches, config.workers)
        self._average = None if config.ema_decay is None else MovingAverage(stage.learner, config.ema_decay)
        self._forward = self._prepared()
        self._optimizer = build_optimizer(stage.learner, stage.model.head, config)
        self._schedule = Schedule(self._optimizer, config, self._moves_of_an_epoch)
        # Embeddings are computed in float32, and so is the head.
        self._dtype = torch.float32 if config.freeze_backbone else _DTYPES[config.precision]
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._dtype == torch.float16)
        self._scale = self._scaler.get_scale()
        labels = data.train.labels
        weights = balanced_weights(labels, len(data.class_names)) if config.class_weights == "balanced" else None
        self._hierarchy = hierarchy_loss(data.class_names, config, self.device)
        self._class_weights = None if weights is None else torch.from_numpy(weights).to(self.device)
        # Where images are blended, the loss is divided by their number: see `Head.loss`.
        self._shares = Shares(self._batches, labels, weights if self._mix is None else None, config.accumulate)

    @property
    def model(self) -> ImageModel:
        """The model as it is validated and saved: the average of the weights, if there is one."""
        return self.stage.whole(self._judged).settled()

    @property
    def step(self) -> int:
        """Batches that are done since the training began."""
        return self.epoch * len(self._batches) + self.batch

    @property
    def is_seen(self) -> bool:
        """Whether the host has looked at all that is done: after each step on the CPU, but not on a GPU."""
        return self._tally.is_seen

    @property
    def mean_loss(self) -> float:
        """The mean loss of what was seen of the running epoch, of this process."""
        loss, _, seen = self._tally.sums.tolist()
        return float(loss / seen)

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
        """Let the head, and the images that it is learned as, start from the training images, if they want to.

        Batch norm works as in training, so that the embeddings are those of the first epoch.
        """
        self._go_final_in_time()
        start_images(self.stage.model, self.data, self.config.seed)
        loader = training_loader(self.stage.train, self._order(0, 1), self.config.workers)
        self.stage.learner.train()

        def embeddings() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in tqdm(
                loader, desc="start of the head", unit="batch", disable=None, leave=False, delay=2
            ):
                if self.stage.views > 1:
                    images = images[:, 0]
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
                is_last = self.batch == len(self._batches)
                if self.batch % self.config.accumulate and not is_last:
                    continue
                if is_last or self._tally.is_due:
                    self._tally.look()
                self.seconds = time.perf_counter() - started
                if self.is_seen:
                    loss, right, seen = self._tally.sums.tolist()
                    progress.set_postfix_str(
                        f"loss {loss / seen:.3f}, accuracy {right / seen:.3f}, "
                        f"{seen * self.processes.count / self.seconds:.0f} {self._unit}"
                    )
                self._move()
                yield

    def end_epoch(self) -> None:
        """Validate, and enter the epoch in the history."""
        loss, right, seen = self._total().tolist()
        self.processes.share_buffers(self._judged)
        val = self.evaluate(self.model, "val")
        if not math.isfinite(val.loss):
            raise diverged(val.loss, f"the validation after epoch {self.epoch + 1}")
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
        self._tally = Tally(self.device)

    def finish(self, model: ImageModel) -> Evaluation | None:
        """Let the head of a model set what follows from the training images after the last step, if it wants to.

        Args:
            model: Made by `Stage.whole`; its head may be changed.

        Returns:
            The model on the validation set; ``None`` if nothing has changed.
        """
        model.eval()
        passes = _Passes(self.stage, model, self.data.train, self.config.workers, self.device)
        with torch.no_grad():
            has_changed = model.head.finish(passes)
        return self.evaluate(model, "val") if has_changed else None

    def evaluate(self, model: ImageModel, part: str) -> Evaluation:
        """Evaluate a model made by `Stage.whole` on the part ``"val"`` or ``"test"`` of the data."""
        learner = model if self.stage.learner is self.stage.model else model.head
        return score(
            learner, self.stage.prepare, getattr(self.stage, part), self.processes, workers=self.config.workers
        )

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
        self._scale = self._scaler.get_scale()
        self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        self.history = json.loads(state["history"])
        if self.processes.is_first:
            self._tally.sums = state["sums"]

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
        """Return the forward pass of a step, compiled and together with other processes as the recipe asks."""
        forward = self.processes.wrap(Answering(self.stage.learner))
        if self.config.compile:
            forward.compile()
        return forward

    @property
    def _judged(self) -> nn.Module:
        return self.stage.learner if self._average is None else self._average.module

    def _identity(self) -> str:
        return identity(self.data, self.model_config, self.config)

    def _order(self, rank: int, count: int, *, with_neighbour: bool = False) -> EpochBatches:
        images, config = len(self.data.train), self.config
        return EpochBatches(images, config.batch_size, config.seed, rank, count, with_neighbour=with_neighbour)

    def _seed(self, rank: int) -> None:
        torch.manual_seed(derived_seed(self.config.seed, self.epoch, self.batch, rank))

    def _learn(self, images: Tensor, labels: Tensor) -> None:
        """Add the gradients of one batch."""
        share = self._shares[self.batch]
        # Images are blended in all processes as they are in one; what layers draw is each process's own.
        self._seed(0)
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        if self.stage.views > 1:
            inputs, targets = inputs.transpose(0, 1).flatten(0, 1), targets.repeat(self.stage.views)
        with torch.no_grad():
            inputs = self.stage.prepare(inputs)
        if self._mix is not None:
            inputs, targets = self._mix(inputs, targets)
        if self.processes.rank:
            self._seed(self.processes.rank)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits, taken = self._forward(inputs)
        head, smoothing = self.stage.model.head, self.config.label_smoothing
        loss = head.loss(taken.float(), logits.float(), targets, self._class_weights, smoothing) + head.penalty()
        if self._hierarchy is not None:
            loss = loss + self._hierarchy(logits.float(), targets, self._class_weights, smoothing)
        # Gradients are averaged over the processes.
        whole = loss * (share.of_step * self.processes.count)
        self._scaler.scale(whole).backward()  # type: ignore[no-untyped-call]
        self.batch += 1
        right = _right(logits[: share.images], targets[: share.images])
        self._tally.add((self.epoch + 1, self.batch), loss, right, share)

    def _move(self) -> None:
        """Let the optimizer make its step, and what follows it, unless the gradients of fp16 are infinite."""
        if self.config.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.stage.learner.parameters(), self.config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        if not self._was_skipped():
            self._schedule.after_step()
            if self._average is not None:
                self._average.update_parameters(self.stage.learner)
        self._go_final_in_time()

    def _was_skipped(self) -> bool:
        """Return whether the step was skipped, as the scale of the loss tells, which with fp16 waits for the device."""
        before, self._scale = self._scale, self._scaler.get_scale()
        if self._scale < _LOWEST_SCALE:
            raise TrainingError(
                f"the gradients at epoch {self.epoch + 1}, step {self.batch} are not finite in fp16, whatever the loss "
                "is scaled by; earlier checkpoints are kept; try a lower learning rate, or bf16 (--precision bf16)"
            )
        return self._scale < before

    def _line(self, row: dict[str, Any]) -> str:
        """Return an epoch in one line."""
        return (
            f"epoch {row['epoch']}/{self.config.epochs}: training loss {row['train_loss']:.4f}, accuracy "
            f"{row['train_accuracy']:.4f}, {row['images_per_second']:.0f} {self._unit}; validation loss "
            f"{row['val_loss']:.4f}, accuracy {row['val_accuracy']:.4f}"
        )

    def _total(self) -> Tensor:
        """Return sums over the running epoch and all processes: of losses, right answers and images."""
        self._tally.look()
        return self.processes.sum(self._tally.sums.clone()).cpu()


@dataclass(frozen=True)
class _Passes:
    """What the head of a model takes of the training images; each iteration is a pass over all of them, in order."""

    stage: Stage
    model: ImageModel
    images: ImageSet
    workers: int | None
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        is_whole = self.stage.learner is self.stage.model
        loader = evaluation_loader(self.images if is_whole else self.stage.train, _BATCH, workers=self.workers)
        for batch, labels in tqdm(loader, desc="end of the head", unit="batch", disable=None, leave=False, delay=2):
            inputs = self.stage.prepare(batch.to(self.device))
            yield (self.model.backbone(inputs) if is_whole else inputs), labels


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many answers are right; the answer to a blended image is to the share of its class."""
    answers = logits.argmax(1)
    return (answers == targets).sum() if targets.ndim == 1 else targets.gather(1, answers[:, None]).sum()
