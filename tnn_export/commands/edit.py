"""The commands ``tnn-export edit`` and ``tnn-export add-class``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from tnn_export.bundle.provenance import load_with_results
from tnn_runtime.bundle.outputs import refuse_among_images
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser, say
from tnn_runtime.errors import UsageError
from tnn_train.model.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from tnn_train.model.editing import add_class, describe_edit, edit_checkpoint
from tnn_train.model.samples import open_folder, read_all

__all__ = ["make_class_parser", "make_parser", "run", "run_class"]

_EPILOG = """examples:
  tnn-export edit runs/photos/best --drop-features 3 17 -o runs/photos-edited
  tnn-export edit runs/photos/best --drop-features "cat or dog" --rename-feature 53 "closed loop" -o runs/photos-edited
  tnn-export edit runs/many/best --drop-prototypes 5 -o runs/many-edited
  tnn-export runs/photos-edited -o runs/photos-edited-bundle

Features are numbered as in explanations: a feature and its opposite are two. The ones that are left keep their numbers.
Without a feature, logits are those that explanation.without tells. The new checkpoint has the edit on record, and is
exported, proven and trained further as every other."""

_CLASS_EPILOG = """examples:
  tnn-export add-class runs/photos/best --name owl --images owls -o runs/photos-owl
  tnn-export runs/photos-owl -o runs/photos-owl-bundle

Each third image is held out to try the class on. Nothing is trained: the prototype of the class is the mean of what the
backbone makes of the other images, and one or two numbers say how strongly it counts. A class that resembles none of
the trained ones needs a training to be told well."""


def make_parser() -> Parser:
    """Return the parser of ``tnn-export edit``."""
    parser = Parser(
        "tnn-export edit", "Make a checkpoint without some features or prototypes, or with names of features.", _EPILOG
    )
    _add_places(parser)
    parser.add_argument(
        "--drop-features", nargs="+", action="extend", default=[], metavar="FEATURE", help="by number or by name"
    )
    parser.add_argument(
        "--drop-prototypes",
        nargs="+",
        action="extend",
        type=int,
        default=[],
        metavar="N",
        help="of lvq heads, and of Tversky heads with a linear map behind them (--tversky.num-prototypes)",
    )
    parser.add_argument(
        "--rename-feature",
        nargs=2,
        action="append",
        default=[],
        metavar=("FEATURE", "NAME"),
        help="what explanations are to call it; its opposite is called 'not NAME'",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export edit``."""
    checkpoint = _read(options)
    names = [(feature, name) for feature, name in options.rename_feature]
    _write(options, edit_checkpoint(checkpoint, options.drop_features, options.drop_prototypes, names))


def make_class_parser() -> Parser:
    """Return the parser of ``tnn-export add-class``."""
    parser = Parser(
        "tnn-export add-class", "Make a checkpoint with one more class, from a few images, untrained.", _CLASS_EPILOG
    )
    _add_places(parser)
    parser.add_argument("--name", required=True, help="of the class")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="folder of images of the class, at least 2"
    )
    return parser


def run_class(options: argparse.Namespace) -> None:
    """Run ``tnn-export add-class``."""
    refuse_among_images(options.out, options.images)
    checkpoint = _read(options)
    images = read_all(open_folder(options.images), checkpoint.preprocessing)
    _write(options, add_class(checkpoint, options.name, images))


def _add_places(parser: Parser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint folder that tnn-train wrote, such as runs/photos/best")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="checkpoint folder to make")
    add("--overwrite", action="store_true", help="replace an existing checkpoint")


def _read(options: argparse.Namespace) -> Checkpoint:
    refuse_existing(options.out, CHECKPOINT, overwrite=options.overwrite)
    if options.out.resolve() == options.checkpoint.resolve():
        raise UsageError(f"{options.out} is the checkpoint that is to be edited; choose another output folder")
    return load_with_results(options.checkpoint)


def _write(options: argparse.Namespace, checkpoint: Checkpoint) -> None:
    save_checkpoint(options.out, checkpoint, overwrite=options.overwrite)
    say(*describe_edit(checkpoint))
    say(f"wrote {options.out}")
    say(f"next: tnn-export {shlex.quote(str(options.out))} -o BUNDLE")
