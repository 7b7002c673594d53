"""Heads over seeds, treated alike, and their comparison: ``tnn-train sweep``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tnn_runtime.bundle.outputs import check_folder, refuse_among_images
from tnn_runtime.bundle.storage import stands
from tnn_runtime.console import say
from tnn_runtime.errors import OutputExistsError, UsageError
from tnn_train.commands.arguments import Configuration, note_unused, option, parse
from tnn_train.data import ImageData, folder_of, load_data
from tnn_train.fields import Field, FieldError, choose, repeated
from tnn_train.heads import BASELINE, DEFAULT, HEADS
from tnn_train.model.config import ModelConfig
from tnn_train.report.compare import compare_runs, write_comparison
from tnn_train.run_files import LAST
from tnn_train.training.loop import TrainResult, check_machine, resolve, train
from tnn_train.training.recipe import TrainConfig

__all__ = ["command"]

_DESCRIPTION = """Train heads from several seeds with the same data and recipe, and compare them.

With --freeze-backbone the images are embedded once, and each head takes seconds:
  tnn-train sweep --data mnist --data-root ~/data --weights runs/cifar/best --freeze-backbone --out runs/probe

what it writes:
  OUT/HEAD-SEED/     a run folder each, as tnn-train would, but for the report
  OUT/rates/         the trainings that the learning rates were chosen by
  OUT/compare.html   the comparison that is printed
"""

_OF_A_SINGLE_RUN = {Field(ModelConfig, "head"): "sweep trains each of --heads"}
"""Fields that are no options here."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Sweep(Configuration):
    """Many trainings.

    Args:
        out: Folder to make.
        heads: Which heads.
        seeds: How many seeds, counted from --seed.
        learning_rates: Rates out of which each head gets the one that is best on validation with the first seed;
            --learning-rate for all if none are given.
        config: TOML file whose values replace the defaults below.
        resume: Go on with what OUT lacks.
    """

    out: Path
    heads: tuple[str, ...] = (BASELINE, DEFAULT)
    seeds: int = 5
    learning_rates: tuple[float, ...] = ()
    config: Path | None = None
    resume: bool = False


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train sweep``."""
    options = parse(_Sweep, "tnn-train sweep", _DESCRIPTION, arguments, _OF_A_SINGLE_RUN)
    _check(options)
    check_machine(options.train)
    check_folder(options.out, "--out")
    refuse_among_images(options.out, folder_of(options.data))
    if options.out.exists() and not options.resume:
        raise OutputExistsError(
            f"{options.out} already exists; pass --resume to go on, or choose another output folder"
        )
    data = load_data(options.data)
    try:
        models = [resolve(options.model.with_head(head), data, options.train) for head in options.heads]
    except FieldError as error:
        raise UsageError(error.told(_option)) from error
    note_unused(options, models, _option)
    folders = []
    for head in options.heads:
        recipe = _with_best_rate(options, data, head)
        for number in range(options.seeds):
            folder = options.out / f"{head}-{recipe.seed + number}"
            _train(options, data, head, dataclasses.replace(recipe, seed=recipe.seed + number), folder)
            folders.append(folder)
    comparison = compare_runs(folders)
    write_comparison(options.out / "compare.html", comparison)
    say(*comparison.table().split("\n"))
    say(f"wrote {options.out / 'compare.html'}")


def _option(field: Field) -> str:
    return "--heads" if field in _OF_A_SINGLE_RUN else option(field)


def _check(options: _Sweep) -> None:
    """Refuse what one of the trainings would refuse, before the first of them.

    Raises:
        UsageError: If heads, seeds or learning rates cannot be used.
    """
    for head in options.heads:
        choose("head", head, HEADS)
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}; expected how many seeds to train from, at least 1")
    if not options.heads:
        raise UsageError(f"--heads names no head; choose from {', '.join(HEADS)}")
    if (twice := repeated(options.heads)) is not None:
        raise UsageError(f"--heads has {twice!r} twice; expected each head once")
    dataclasses.replace(options.train, seed=options.train.seed + options.seeds - 1)
    rates = options.learning_rates
    try:
        for rate in rates:
            dataclasses.replace(options.train, learning_rate=rate)
    except FieldError as error:
        raise UsageError(error.told(lambda field: "--learning-rates")) from error
    if (same := repeated(rates)) is not None:
        raise UsageError(f"--learning-rates has {same!r} twice; expected each rate once")
    if rates and options.train.learning_rate != TrainConfig().learning_rate:
        _logger.warning("--learning-rate is not used: each head gets one of --learning-rates")


def _with_best_rate(options: _Sweep, data: ImageData, head: str) -> TrainConfig:
    """Return the recipe with the learning rate that is best on validation with the first seed."""
    if not options.learning_rates:
        return options.train
    tried = []
    for rate in options.learning_rates:
        recipe = dataclasses.replace(options.train, learning_rate=rate)
        result = _train(options, data, head, recipe, options.out / "rates" / f"{head}-{_plain(rate)}")
        tried.append((max(row["val_accuracy"] for row in result.history), recipe))
    accuracy, best = max(tried, key=lambda pair: pair[0])
    say(f"{head}: learning rate {_plain(best.learning_rate)}, validation accuracy {accuracy:.4f}")
    return best


def _plain(rate: float) -> str:
    """Return a number with all its digits, so that no two are written alike."""
    return repr(rate).removesuffix(".0")


def _train(options: _Sweep, data: ImageData, head: str, recipe: TrainConfig, folder: Path) -> TrainResult:
    model = options.model.with_head(head)
    resume = options.resume and stands(folder / LAST)
    return train(data, folder, model, recipe, resume=resume, overwrite=options.resume and not resume)
