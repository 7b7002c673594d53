"""The command ``tnn-train``."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.console import notes, say
from tnn_runtime.errors import UsageError
from tnn_train.commands.arguments import Configuration, note_unused, options_named, parse
from tnn_train.commands.reporting import report_on
from tnn_train.data import load_data
from tnn_train.fields import choose
from tnn_train.heads import HEADS
from tnn_train.messages import is_first
from tnn_train.model.config import PIXELS
from tnn_train.training.loop import TrainResult, check_machine, pick_device, resolve, train
from tnn_train.training.run_folder import check_run_folder

__all__ = ["command"]

_logger = logging.getLogger(__name__)

_DESCRIPTION = """Train an image classifier with an interpretable head, or its linear baseline, on labelled images.

examples:
  tnn-train --data photos --out runs/photos           a folder with one subfolder of images for each class
  tnn-train --data digits --head linear --out runs/digits-linear
  tnn-train --data mnist --data-root ~/data --limit 2000 --epochs 5 --out runs/mnist
  tnn-train --data photos --out runs/photos --resume  go on after an interruption, with the same options
  tnn-train --config photos.toml --out runs/photos    options from a file; those given here come first
  torchrun --nproc-per-node 2 -m tnn_train --data photos --out runs/photos
  tnn-train sweep --help                              heads over seeds, and a comparison
  tnn-train compare runs/photos runs/photos-linear    runs side by side
  tnn-train audit runs/photos                         how far its explanations can be trusted
  tnn-train unfold --help                             a linear classifier as a Tversky one
  tnn-train prototypes runs/photos -o learned.png     the images that a head was learned as (--tversky.domain image)

what it writes:
  OUT/best/          checkpoint of the epoch with the best validation accuracy: give this to tnn-export
  OUT/last/          checkpoint of the last epoch or step saved, with what --resume needs
  OUT/metrics.jsonl  one line for each epoch;  OUT/results.json  the test set, looked at once, with the best epoch
  OUT/report.html    curves, mistakes, calibration, prototypes

a configuration file has the same names, with underscores, in sections:
  [data]  source = "photos"    [train]  epochs = 10    [model]  backbone = "resnet50"    [model.tversky]  alpha = 0.1
"""


@dataclass(frozen=True, kw_only=True)
class _Training(Configuration):
    """One training.

    Args:
        out: Run folder to make.
        config: TOML file whose values replace the defaults below.
        overwrite: Replace an existing run folder.
        resume: Go on from OUT/last.
    """

    out: Path
    config: Path | None = None
    overwrite: bool = False
    resume: bool = False


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train``, or one of its subcommands."""
    first, *others = arguments or [""]
    if first and not first.startswith("-") and first not in _SUBCOMMANDS:
        raise UsageError(f"unknown command {first!r}{nearest(first, _SUBCOMMANDS)}; see tnn-train --help")
    with options_named(), notes("tnn-train", is_first):
        _SUBCOMMANDS[first](others) if first in _SUBCOMMANDS else _train(arguments)


def _train(arguments: Sequence[str]) -> None:
    options = parse(_Training, "tnn-train", _DESCRIPTION, arguments)
    choose("head", options.model.head, HEADS)
    device = pick_device(options.train.device)
    check_machine(options.train)
    check_run_folder(options.out, overwrite=options.overwrite, resume=options.resume, data=options.data)
    data = load_data(options.data)
    model = resolve(options.model, data, options.train)
    note_unused(options, [model])
    if is_first():
        say(
            f"{data.name}: {len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images of "
            f"{len(data.class_names)} classes, {data.preprocessing.height}x{data.preprocessing.width}; "
            f"{model.backbone}, {'' if model.backbone == PIXELS else f'{model.stem} stem, '}{model.head} head"
        )
    if options.train.freeze_backbone and options.train.weights is None:
        _logger.warning("the backbone is frozen with random weights; give it others with --weights")
    result = train(data, options.out, model, options.train, overwrite=options.overwrite, resume=options.resume)
    if is_first():
        report_on(result, data, device, shlex.join(["tnn-train", *arguments]))
        _conclude(result)


def _conclude(result: TrainResult) -> None:
    say(
        f"test accuracy {result.test.accuracy:.4f} on {len(result.test.labels)} images; see {result.folder}/report.html"
    )
    say(f"next: tnn-export {result.best} -o {result.folder}-bundle")


def _sweep(arguments: Sequence[str]) -> None:
    from tnn_train.commands.sweep import command

    command(arguments)


def _compare(arguments: Sequence[str]) -> None:
    from tnn_train.commands.compare import command

    command(arguments)


def _unfold(arguments: Sequence[str]) -> None:
    from tnn_train.commands.unfold import command

    command(arguments)


def _audit(arguments: Sequence[str]) -> None:
    from tnn_train.commands.audit import command

    command(arguments)


def _prototypes(arguments: Sequence[str]) -> None:
    from tnn_train.commands.prototypes import command

    command(arguments)


_SUBCOMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "audit": _audit,
    "compare": _compare,
    "prototypes": _prototypes,
    "sweep": _sweep,
    "unfold": _unfold,
}
