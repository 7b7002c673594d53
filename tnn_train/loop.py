"""The training loop, from a data set to the folders ``last/`` and ``best/``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tnn_runtime.errors import UsageError
from tnn_runtime.storage import refuse_existing, write_json, write_text
from tnn_train.checkpoint import Checkpoint, load_checkpoint, load_trainer_state, save_checkpoint
from tnn_train.config import CLASS_MEANS, ModelConfig, TrainConfig
from tnn_train.data import (
    AugmentedSet,
    EpochBatches,
    ImageData,
    ImageSet,
    evaluation_loader,
    load_data,
    training_loader,
)
from tnn_train.errors import TrainingError
from tnn_train.heads import TverskyHead
from tnn_train.inits import class_means
from tnn_train.models import ImageModel, Normalize, build_model

__all__ = ["Evaluation", "TrainResult", "evaluate", "train"]

BEST, LAST = "best", "last"

_AUGMENTATIONS: dict[str, tuple[str, ...]] = {"none": (), "crop": ("crop",), "crop-flip": ("crop", "flip")}
_SMALL_IMAGE = 96
_PARITY_SAMPLES = 128
_SAMPLE_BYTES = 16 << 20


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a set.

    Args:
        loss: Mean cross-entropy in nats.
        accuracy: Share of right answers, 0 to 1.
        predictions: Class indices, int64 ``[N]``.
        labels: The right ones, int64 ``[N]``.
        confusion: Counts ``[classes, classes]``: rows are the right classes, columns the predicted ones.
    """

    loss: float
    accuracy: float
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    confusion: NDArray[np.int64]


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Args:
        folder: The run folder, with ``metrics.jsonl``, ``results.json``, ``last`` and ``best``.
        best: The checkpoint of the epoch with the best validation accuracy.
        history: One dictionary for each epoch, as in ``metrics.jsonl``.
        test: The best checkpoint on the test set.
    """

    folder: Path
    best: Path
    history: list[dict[str, Any]]
    test: Evaluation


def train(
    data: ImageData | str | Path,
    out: str | Path,
    model: ModelConfig | None = None,
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> TrainResult:
    """Train a model, keep the best epoch by validation, and touch the test set once, at the end.

    Args:
        data: A data set, or what `tnn_train.load_data` takes.
        out: The run folder to make.
        model: Backbone and head; the numbers of classes and channels are taken from the data.
        config: The recipe.
        overwrite: Whether an existing run folder may be replaced.
        resume: Whether to go on from ``out/last``; the result is what an uninterrupted run would have given.

    Raises:
        OutputExistsError: If ``out`` exists, and neither ``overwrite`` nor ``resume`` was given.
        UsageError: If a configuration is unusable, or differs from the one to be resumed.
        TrainingError: If the loss is no longer a number.
    """
    folder, config = Path(out), config or TrainConfig()
    check_run_folder(folder, overwrite=overwrite, resume=resume)
    device = pick_device(config.device)
    data = data if isinstance(data, ImageData) else load_data(data, seed=config.seed)
    model = resolve(model or ModelConfig(), data)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trainer = _Trainer(data, build_model(model), model, config, device)
    if resume:
        trainer.restore(folder / LAST)
    elif model.head == "tversky" and model.tversky.prototype_init == CLASS_MEANS:
        trainer.start_at_class_means()
    try:
        while trainer.epoch < config.epochs:
            trainer.run_epoch()
            if trainer.epoch == 1 and folder.exists():
                shutil.rmtree(folder)
            trainer.save(folder)
    except KeyboardInterrupt:
        if not trainer.history or not (folder / LAST).exists():
            raise
        hint = "repeat the command with --resume (resume=True) to go on"
        raise KeyboardInterrupt(f"{folder / LAST} holds the last whole epoch: {hint}") from None
    best = folder / BEST
    test = evaluate(load_checkpoint(best).model.to(device), data.test)
    chosen = max(trainer.history, key=_rank)
    write_json(
        folder / "results.json",
        {
            "data": data.name,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "best_epoch": chosen["epoch"],
            "val_accuracy": chosen["val_accuracy"],
            "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "class_names": list(data.class_names),
            "confusion": test.confusion.tolist(),
            "train_config": dataclasses.asdict(config),
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
    )
    return TrainResult(folder, best, trainer.history, test)


def check_run_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Make sure that a training may be written to ``folder``, or resumed from it.

    Raises:
        OutputExistsError: If it exists and is neither to be overwritten nor resumed.
        UsageError: If there is nothing to resume.
    """
    if not resume:
        refuse_existing(folder, BEST, overwrite=overwrite)
    elif not (folder / LAST).exists():
        raise UsageError(f"{folder} has no {LAST} to resume from; start again, with --overwrite if the folder exists")


def resolve(model: ModelConfig, data: ImageData) -> ModelConfig:
    """Return the configuration with what the data decides: classes, channels, and the stem if it is ``"auto"``."""
    small = max(data.preprocessing.height, data.preprocessing.width) < _SMALL_IMAGE
    stem = model.stem if model.stem != "auto" else "small" if small else "imagenet"
    channels = data.preprocessing.channels
    return dataclasses.replace(model, num_classes=len(data.class_names), in_channels=channels, stem=stem)


def evaluate(model: ImageModel, images: ImageSet, *, batch_size: int = 64) -> Evaluation:
    """Return loss, accuracy and predictions of a model in evaluation mode on a set."""
    device = next(model.parameters()).device
    normalize = Normalize(images.preprocessing).to(device)
    model.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for batch, target in tqdm(
            evaluation_loader(images, batch_size), desc="evaluating", unit="batch", disable=None, leave=False, delay=1
        ):
            logits.append(model(normalize(batch.to(device))).float().cpu())
            labels.append(target)
    scores, right = torch.cat(logits), torch.cat(labels)
    predicted = scores.argmax(1)
    classes = scores.shape[1]
    confusion = torch.bincount(right * classes + predicted, minlength=classes * classes).view(classes, classes)
    return Evaluation(
        float(functional.cross_entropy(scores, right)),
        float((predicted == right).double().mean()),
        predicted.numpy(),
        right.numpy(),
        confusion.numpy(),
    )


class _Trainer:
    """All that changes during a training, so that it can be saved and restored."""

    def __init__(
        self, data: ImageData, model: ImageModel, model_config: ModelConfig, config: TrainConfig, device: torch.device
    ) -> None:
        self.data, self.model_config, self.config, self.device = data, model_config, config, device
        self.model = model.to(device)
        self.normalize = Normalize(data.preprocessing).to(device)
        self.batches = EpochBatches(len(data.train), config.batch_size, config.seed)
        augmented = AugmentedSet(data.train, _AUGMENTATIONS[config.augment], config.seed)
        self.loader = training_loader(augmented, self.batches)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * len(self.loader)
        )
        self.samples = _samples(data.val)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def start_at_class_means(self) -> None:
        """Move the prototypes to means of the embeddings of their classes, in one pass over the training images.

        Batch norm works as in training, so that the embeddings are those of the first epoch.
        """
        head = self.model.head
        assert isinstance(head, TverskyHead)
        self.model.train()

        def embeddings() -> Iterator[tuple[Tensor, Tensor]]:
            loader = training_loader(AugmentedSet(self.data.train, (), self.config.seed), self.batches)
            for images, labels in tqdm(loader, desc="class means", unit="batch", disable=None, leave=False, delay=2):
                yield self.model.backbone(self.normalize(images.to(self.device))), labels

        with torch.no_grad():
            means = class_means(embeddings(), head.num_classes, len(head.prototypes))
            head.prototypes.copy_(means)

    def run_epoch(self) -> None:
        """Train for one epoch, validate, and enter both in the history."""
        self.epoch += 1
        started = time.perf_counter()
        self.model.train()
        self.batches.set_position(self.epoch)
        seen, right, total = 0, 0, 0.0
        with tqdm(self.loader, desc=f"epoch {self.epoch}/{self.config.epochs}", unit="batch", disable=None) as progress:
            for step, (images, labels) in enumerate(progress, 1):
                images, labels = images.to(self.device), labels.to(self.device)
                logits = self.model(self.normalize(images))
                loss = functional.cross_entropy(logits, labels)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise _diverged(value, f"epoch {self.epoch}, step {step}")
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.scheduler.step()
                seen, right, total = (
                    seen + len(labels),
                    right + int((logits.argmax(1) == labels).sum()),
                    total + value * len(labels),
                )
                rate = seen / (time.perf_counter() - started)
                progress.set_postfix_str(f"loss {total / seen:.3f}, accuracy {right / seen:.3f}, {rate:.0f} images/s")
        seconds = time.perf_counter() - started
        val = evaluate(self.model, self.data.val)
        if not math.isfinite(val.loss):
            raise _diverged(val.loss, f"the validation after epoch {self.epoch}")
        tqdm.write(f"epoch {self.epoch}: validation accuracy {val.accuracy:.4f}, loss {val.loss:.4f}")
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": total / seen,
                "train_accuracy": right / seen,
                "val_loss": val.loss,
                "val_accuracy": val.accuracy,
                "learning_rate": self.scheduler.get_last_lr()[0],
                "seconds": seconds,
                "images_per_second": seen / seconds,
            }
        )

    def save(self, folder: Path) -> None:
        """Write ``last/``, ``best/`` if this epoch is the best so far, and ``metrics.jsonl``."""
        newest = self.history[-1]
        checkpoint = Checkpoint(
            self.model,
            self.model_config,
            self.data.preprocessing,
            self.data.class_names,
            self.samples,
            newest,
        )
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "history": json.dumps(self.history),
            "identity": self._identity(),
        }
        if max(self.history, key=_rank) is newest:
            save_checkpoint(folder / BEST, checkpoint, overwrite=True)
        save_checkpoint(folder / LAST, checkpoint, state, overwrite=True)
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))

    def restore(self, last: Path) -> None:
        """Continue from a checkpoint of the same training."""
        state = load_trainer_state(last)
        ours, theirs = json.loads(self._identity()), json.loads(state["identity"])
        if changed := [
            f"{key}: was {theirs.get(key)}, now {value}" for key, value in ours.items() if theirs.get(key) != value
        ]:
            raise UsageError(
                f"{last} belongs to another training ({'; '.join(changed)}); repeat its options to resume it"
            )
        self.model.load_state_dict(load_checkpoint(last).model.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.history = json.loads(state["history"])
        self.epoch = len(self.history)

    def _identity(self) -> str:
        """Return what a resumed training must share with the interrupted one, as JSON."""
        recipe = dataclasses.asdict(self.config)
        for name in ("device", "threads"):
            del recipe[name]
        labels = hashlib.sha256(self.data.train.labels.tobytes() + self.data.val.labels.tobytes()).hexdigest()
        images = {
            "images": len(self.data.train),
            "labels": labels,
            "classes": self.data.class_names,
            "preprocessing": dataclasses.asdict(self.data.preprocessing),
        }
        return json.dumps({**recipe, **images, "model": dataclasses.asdict(self.model_config)}, sort_keys=True)


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _samples(images: ImageSet) -> NDArray[np.uint8]:
    return images.sample(max(1, min(_PARITY_SAMPLES, _SAMPLE_BYTES // math.prod(images.preprocessing.shape))))


def _diverged(loss: float, where: str) -> TrainingError:
    return TrainingError(f"the loss is {loss} at {where}; earlier checkpoints are kept; try a lower learning rate")


def pick_device(name: str) -> torch.device:
    """Return the device of that name, or the best one for ``"auto"``.

    Raises:
        UsageError: If there is no such device, or it does not work here.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UsageError(f"device {name!r} does not work here ({reason}); choose auto, cpu, cuda or cuda:N") from error
    return device
