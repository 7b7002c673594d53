"""The command ``tnn-train unfold``."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.outputs import refuse_among_images
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser, say
from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.images.folders import ImageFolder
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.model.checkpoint import CHECKPOINT, CONFIG_FILE, Checkpoint, load_checkpoint, refuse_run, save_checkpoint
from tnn_train.model.classifiers import TORCHVISION, read_classifier, read_published
from tnn_train.model.inputs import add_file_options, make_preprocessing, random_images, read_class_names
from tnn_train.model.samples import open_folder, read_samples
from tnn_train.model.unfolding import describe_unfolding, unfold_checkpoint

__all__ = ["command", "make_parser"]

_EPILOG = """examples:
  tnn-train unfold runs/linear/best -o runs/unfolded
  tnn-train unfold runs/linear/best --code attributes.csv -o runs/unfolded
  tnn-train unfold torchvision:resnet50 --images photos -o runs/unfolded
  tnn-train unfold net.pth --backbone resnet18 --images photos -o runs/unfolded
  tnn-export runs/unfolded -o runs/unfolded-bundle

The checkpoint is written only if its logits, less their mean over the classes, are those of the linear layer, within
1e-5 of the largest one, on the images that go into it and on random ones."""

_OF_FILES = (
    *("backbone", "class_names", "image_size", "mean", "std", "fit", "background", "stem", "prefix"),
    "backbone_weights",
)
"""Options that say what a state dict does not tell."""

_RANDOM = 16
_logger = logging.getLogger(__name__)


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train unfold``."""
    options = make_parser().parse_args(arguments)
    refuse_existing(options.out, CHECKPOINT, overwrite=options.overwrite)
    refuse_among_images(options.out, options.images)
    linear = _read(options)
    unfolded = unfold_checkpoint(linear, options.code, source=options.source)
    save_checkpoint(options.out, unfolded, overwrite=options.overwrite)
    say(*describe_unfolding(unfolded))
    say(f"wrote {options.out}")
    place = shlex.quote(str(options.out))
    say(f"next: tnn-export {place} -o BUNDLE")
    say(
        f"or train it further: tnn-train --data FOLDER --backbone {unfolded.config.backbone} --weights {place} "
        "--keep-head --epochs 3 --learning-rate 0.0001 --out RUN"
    )


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "tnn-train unfold", "Turn a linear classifier into a Tversky one with the same predictions.", _EPILOG
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help=f"a checkpoint folder with a linear head; {TORCHVISION}NAME, such as {TORCHVISION}resnet50, for "
        "torchvision's weights; or a state dict of such a classifier: .pth, .pt or .safetensors",
    )
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="checkpoint folder to make")
    add(
        "--code",
        default="hierarchy",
        help="the attributes of the classes: classes, one for each class; hierarchy, also one for each group of "
        "similar classes; or a CSV file with a row for each class and a column for each attribute",
    )
    add("--overwrite", action="store_true", help="replace an existing checkpoint")
    other = parser.add_argument_group("classifiers of other programs, which do not tell")
    other.add_argument("--backbone", metavar="NAME", help="torchvision's name of the classifier, such as resnet18")
    other.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of images as the classifier is to see, for this proof and those of exports; if not given, images "
        "of random pixels",
    )
    add_file_options(other, "last layer")
    return parser


def _read(options: argparse.Namespace) -> Checkpoint:
    """Return the linear classifier as a checkpoint."""
    source = Path(options.source)
    if options.source.startswith(TORCHVISION):
        _refuse(options, _OF_FILES, "torchvision's weights tell that themselves")
        return _published(options)
    refuse_run(source)
    if source.is_dir():
        _refuse(options, (*_OF_FILES, "images"), "a checkpoint tells that itself")
        return load_checkpoint(source)
    if not source.exists():
        raise ArtifactError(
            f"{source} does not exist; expected a checkpoint folder, {TORCHVISION}NAME, or a .pth, .pt or .safetensors "
            "file"
        )
    if options.backbone is None:
        remedy = "give torchvision's name of it, such as --backbone resnet50"
        if (source.parent / CONFIG_FILE).is_file():
            remedy = f"give the checkpoint that it is a part of: {source.parent}"
        raise UsageError(f"{source} does not tell which classifier its weights belong to; {remedy}")
    preprocessing = make_preprocessing(
        options.image_size, options.mean, options.std, options.fit, options.background, options.backbone
    )
    images = None if options.images is None else open_folder(options.images)
    names = read_class_names(options.class_names, images)
    samples, labels = _samples(images, preprocessing, names)
    return read_classifier(
        source,
        backbone=options.backbone,
        preprocessing=preprocessing,
        class_names=names,
        samples=samples,
        labels=labels,
        stem=options.stem or "auto",
        prefix=options.prefix,
        backbone_weights=options.backbone_weights,
    )


def _published(options: argparse.Namespace) -> Checkpoint:
    found = read_published(options.source.removeprefix(TORCHVISION))
    if found.note is not None:
        _logger.warning(found.note)
    images = None if options.images is None else open_folder(options.images)
    samples, labels = _samples(images, found.preprocessing, found.class_names)
    return read_classifier(
        found,
        backbone=found.backbone,
        preprocessing=found.preprocessing,
        class_names=found.class_names,
        samples=samples,
        labels=labels,
    )


def _samples(
    folder: ImageFolder | None, preprocessing: Preprocessing, class_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    if folder is not None:
        return read_samples(folder, preprocessing, class_names)
    _logger.warning("no images were given, so that this proof and those of exports see random pixels; give --images")
    return random_images(preprocessing, _RANDOM), None


def _refuse(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options that do not suit the kind of source."""
    if given := [name for name in names if getattr(options, name) is not None]:
        raise UsageError(f"got --{given[0].replace('_', '-')} with {options.source}: {reason}; leave it out")
