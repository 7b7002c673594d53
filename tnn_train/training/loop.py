"""From a data set to a run folder: the training as a whole."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from tnn_runtime.bundle.claim import claimed
from tnn_runtime.console import is_out_of_memory
from tnn_runtime.errors import UsageError
from tnn_train.data import DataConfig, ImageData, load_data
from tnn_train.data.augment import MIXING
from tnn_train.data.worker_faults import deaths_told
from tnn_train.distributed import join
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.fields import Field, FieldError, choose
from tnn_train.heads import HEADS
from tnn_train.messages import is_first
from tnn_train.model.backbones import check_image_size, embedding_size
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel, build_model
from tnn_train.model.kept_head import keep_head, with_kept_head
from tnn_train.model.weights import load_weights, resolve_stem
from tnn_train.run_files import BEST, LAST
from tnn_train.statistics import Statistics
from tnn_train.training.loggers import open_logs
from tnn_train.training.recipe import TrainConfig
from tnn_train.training.run_folder import RunFolder, check_run_folder
from tnn_train.training.stage import set_stage
from tnn_train.training.stopping import listen
from tnn_train.training.trainer import Trainer

__all__ = ["TrainResult", "check_machine", "pick_device", "resolve", "train"]

_logger = logging.getLogger(__name__)

_MOST_PER_CORE = 4
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_CHOICE = "choose auto, cpu, cuda or cuda:N"
_LESS_MEMORY = (
    *("lower ", Field(TrainConfig, "batch_size"), " (and raise ", Field(TrainConfig, "accumulate"), ") or "),
    *(Field(DataConfig, "image_size"), ", or choose a smaller ", Field(ModelConfig, "backbone"), " or head"),
)


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


@deaths_told()
def train(
    data: ImageData | DataConfig | str | Path,
    out: str | Path,
    model: ModelConfig | None = None,
    config: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> TrainResult:
    """Train a model, keep the best epoch by validation, and touch the test set once, at the end.

    Under ``torchrun`` every process calls this with the same arguments; the first one writes the files.

    Args:
        data: A data set, or what `tnn_train.load_data` takes.
        out: The run folder to make.
        model: Backbone and head; the numbers of classes and channels are taken from the data.
        config: The recipe.
        overwrite: Whether an existing run folder may be replaced.
        resume: Whether to go on from ``out/last``; the result is what an uninterrupted run would have given.

    Raises:
        OutputExistsError: If ``out`` exists, and neither ``overwrite`` nor ``resume`` was given; if it has files that
            are no part of a run; or if another process is writing to it.
        UsageError: If a configuration is unusable, or differs from the one to be resumed.
        TrainingError: If the loss is no longer a number.
        WorkerError: If processes that decode images cannot work on this machine.
        KeyboardInterrupt: On SIGTERM or SIGINT, after the running step was saved.
    """
    folder, config = Path(out), config or TrainConfig()
    if isinstance(data, ImageData):
        source = data.config
    else:
        source = data if isinstance(data, DataConfig) else DataConfig(str(data))
    check_run_folder(folder, overwrite=overwrite, resume=resume, data=source)
    check_machine(config)
    device = pick_device(config.device)
    with claimed(folder) if is_first() else nullcontext():
        data = data if isinstance(data, ImageData) else load_data(source)
        return _train(data, folder, model or ModelConfig(), config, device, resume=resume)


def _train(
    data: ImageData, folder: Path, model: ModelConfig, config: TrainConfig, device: torch.device, *, resume: bool
) -> TrainResult:
    with join(device) as processes, _settings(config):
        with listen() as stop:
            network, data, model = _prepare(data, model, config)
            trainer = Trainer(set_stage(network, data, config, processes.device), data, model, config, processes)
            run = RunFolder(folder, trainer, is_resumed=resume)
            if resume:
                run.restore()
            elif not config.keep_head:
                trainer.start()
            with open_logs(folder, trainer) as logs:
                while not trainer.is_finished:
                    for _ in trainer.steps():
                        is_stopped = trainer.is_seen and processes.any(stop.received)
                        if is_stopped or (config.save_steps and trainer.step % config.save_steps < config.accumulate):
                            run.save(is_urgent=True)
                        if is_stopped:
                            raise KeyboardInterrupt(_goodbye(folder, trainer))
                        if trainer.is_seen:
                            logs.step()
                    trainer.end_epoch()
                    run.save(is_urgent=trainer.is_finished or stop.received)
                    logs.epoch()
            processes.wait()
            best = run.finished_best()
            test = trainer.evaluate(best.model, "test")
            run.finish(test, best.metrics)
        run.look_at_training_images()
    return TrainResult(folder, folder / BEST, trainer.history, test)


def resolve(model: ModelConfig, data: ImageData, config: TrainConfig | None = None) -> ModelConfig:
    """Return the configuration with what the data and the recipe decide: classes, channels, stem, start of the head.

    Raises:
        UsageError: If the head or the backbone is unknown, the backbone cannot take such images, or the head cannot
            start in this way.
    """
    height, width, channels = data.preprocessing.shape
    stem = resolve_stem(model, height, width, None if config is None else config.weights)
    model = dataclasses.replace(model, num_classes=len(data.class_names), in_channels=channels, stem=stem)
    model = model.for_size(height, width)
    choose("head", model.head, HEADS)
    size = embedding_size(model, HEADS[model.head].takes)
    check_image_size(model, height, width)
    is_frozen = config is not None and config.freeze_backbone
    if config is not None and config.weights is not None and config.keep_head:
        model = with_kept_head(model, config.weights, data.class_names, data.preprocessing)
    else:
        model = model.resolved(data.class_names, size, is_frozen=is_frozen)
    if HEADS[model.head].learns_images(model.options) and is_frozen:
        raise FieldError(
            *("the head learns images, which the backbone embeds at each step, and ",),
            *(Field(TrainConfig, "freeze_backbone"), " embeds but once; leave it out, or choose the domain embedding"),
        )
    if HEADS[model.head].views(model.options) > 1 and config is not None:
        _refuse_views(config)
    return model.for_size(height, width)


def _refuse_views(config: TrainConfig) -> None:
    """Refuse what cannot be with a head that compares views of images."""
    head = "the head compares views of each training image, "
    if config.freeze_backbone:
        raise FieldError(head, "and ", Field(TrainConfig, "freeze_backbone"), " embeds but one of it; leave it out")
    if mixed := [name for name in config.augmentations if name in MIXING]:
        augment = Field(TrainConfig, "augment")
        raise FieldError(head, "which ", augment, f" {' '.join(mixed)} blends with others; leave {mixed[0]} out")


def check_machine(config: TrainConfig) -> None:
    """Make sure that this machine can have so many threads and workers.

    Raises:
        UsageError: If not.
    """
    cores = os.cpu_count() or 1
    for name in ("threads", "workers"):
        if (getattr(config, name) or 0) > _MOST_PER_CORE * cores:
            raise FieldError(
                Field(TrainConfig, name),
                f" is {getattr(config, name)} on a machine with {cores} cores; expected at most "
                f"{_MOST_PER_CORE * cores}",
            )


def pick_device(name: str) -> torch.device:
    """Return the device of that name, or the best one for ``"auto"``.

    Raises:
        UsageError: If there is no such device, or it does not work here.
    """
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"unknown device {name!r}; {_CHOICE}")
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shorten(str(error).split("\n")[0], 160, placeholder=" ...")
        raise UsageError(f"device {name!r} does not work here ({reason}); {_CHOICE}") from error
    return device


def _prepare(data: ImageData, model: ModelConfig, config: TrainConfig) -> tuple[ImageModel, ImageData, ModelConfig]:
    """Return the network at its start, and the data as it wants them."""
    model = resolve(model, data, config)
    torch.manual_seed(config.seed)
    network = build_model(model, is_training=not config.keep_head)
    if config.weights is not None:
        statistics = load_weights(network, model, config.weights)
        if config.keep_head:
            keep_head(network, config.weights)
        data = _normalized(data, statistics, config.weights)
    return network, data, model


def _normalized(data: ImageData, statistics: Statistics | None, weights: str) -> ImageData:
    """Return the images as the weights want them, unless a person asked for something else; tell what that is.

    Args:
        data: The images.
        statistics: What belongs to the weights; ``None`` if that is not known.
        weights: Where they come from.
    """
    asked, is_guess, origin = data.config, False, data.normalization
    if asked.mean is None and asked.normalize is None:
        if statistics is None:
            is_guess, origin = True, f"{origin}, as {weights} does not tell"
            data = data.normalized(data.preprocessing.mean, data.preprocessing.std, origin)
        else:
            is_guess, origin = statistics.is_guess, statistics.origin
            data = data.normalized(statistics.mean, statistics.std, origin)
    used = Statistics(data.preprocessing.mean, data.preprocessing.std)
    hint = "; if it was trained with others, give --mean and --std (mean=, std=), or --normalize" if is_guess else ""
    _logger.warning("images are normalised with %s (%s)%s", used, origin, hint)
    return data


@contextmanager
def _settings(config: TrainConfig) -> Iterator[None]:
    """Give torch the threads and the determinism of the recipe, and its own settings back afterwards.

    Raises:
        UsageError: If torch has no compiler, no deterministic form of an operator, or too little memory.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if is_out_of_memory(error):
            raise FieldError(f"out of memory ({reason}); ", *_LESS_MEMORY) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UsageError(f"torch.compile does not work here ({reason}); leave --compile out") from error
        if "deterministic" in reason:
            raise UsageError(f"{reason}; leave --deterministic out") from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _goodbye(folder: Path, trainer: Trainer) -> str:
    return (
        f"{folder / LAST} holds epoch {trainer.epoch + 1}, step {trainer.batch}: repeat the command with --resume "
        "(resume=True) to go on"
    )
