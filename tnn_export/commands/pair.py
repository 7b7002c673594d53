"""The command ``tnn-export pair``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tnn_export.bundle.pair import PAIR, export_pair
from tnn_export.commands.arguments import add_export_options, export_options
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser, say
from tnn_runtime.errors import UsageError
from tnn_train.fields import Field, FieldError, choose
from tnn_train.heads import BASELINE, DEFAULT, HEADS
from tnn_train.heads.tversky.config import TverskyConfig
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS
from tnn_train.model.config import ModelConfig

__all__ = ["make_parser", "run"]

_EPILOG = """examples:
  tnn-export pair --backbone resnet50 --classes 1000 -o runs/pair
  tnn-runtime bench runs/pair/tversky runs/pair/linear --batch 1 32 --threads 1
  tnn-export pair --backbone resnet18 --classes 1000 --num-features 1024 --difference ignorematch -o runs/pair18

Both bundles have the weights of one backbone, which nobody trained: they measure speed, and their answers mean nothing.
Both are proven as every export, on random and adversarial images."""
_FORM = TverskyConfig()
_CHOICES: dict[str, Iterable[str]] = {
    "model": MODELS,
    "intersection": INTERSECTIONS,
    "difference": DIFFERENCES,
    "membership": MEMBERSHIPS,
    "feature_bank": ("learned", "diagonal"),
}


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export pair``."""
    refuse_existing(options.out, PAIR, overwrite=options.overwrite)
    how = export_options(options)
    try:
        form = TverskyConfig(
            options.num_features,
            options.model,
            options.intersection,
            options.difference,
            membership=options.membership,
            normalize=options.normalize,
            feature_bank=options.feature_bank,
            num_prototypes=options.num_prototypes,
        )
        config = ModelConfig(
            options.backbone,
            choose("head", options.head, HEADS),
            options.classes,
            options.channels,
            options.stem,
            tversky=form,
        )
    except FieldError as error:
        raise UsageError(error.told(_option)) from error
    reports = export_pair(
        options.out,
        config,
        options.size,
        options.seed,
        options=how,
        keep_checkpoints=options.keep_checkpoints,
        overwrite=options.overwrite,
    )
    for head, report in reports.items():
        say(str(options.out / head), *report.table().split("\n"))
    if "onnx" in how.formats:
        say(f"next: tnn-runtime bench {' '.join(str(options.out / head) for head in reports)} --threads 1")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "tnn-export pair", "Make an untrained classifier and its linear twin, to measure their speed.", _EPILOG
    )
    add = parser.add_argument
    add("--backbone", required=True, metavar="NAME", help="a classifier of torchvision, such as resnet50")
    add("--classes", type=int, required=True, metavar="N", help="number of logits, 2 or more")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to make, with a bundle for each head")
    others = ", ".join(head for head in HEADS if head != BASELINE)
    add("--head", default=DEFAULT, metavar="HEAD", help=f"what to compare with the {BASELINE} head: {others}")
    add("--size", type=int, default=224, metavar="PIXELS", help="height and width of the images")
    add("--channels", type=int, default=3, metavar="N", help="1 (grey) or 3 (RGB)")
    add("--stem", default="imagenet", help="of a ResNet: imagenet, or small for small images")
    add("--seed", type=int, default=0, metavar="N", help="what the weights are drawn with")
    add("--keep-checkpoints", action="store_true", help="also keep the two checkpoints, to time eager PyTorch")
    add("--overwrite", action="store_true", help="replace an existing pair")
    add_export_options(parser)
    form = parser.add_argument_group(
        "the form of the Tversky head", "By default it has the form in which a training from scratch leaves it."
    )
    form.add_argument("--num-features", type=int, default=_FORM.num_features, metavar="F", help="size of the bank")
    for name, choices in _CHOICES.items():
        form.add_argument(
            f"--{name.replace('_', '-')}", default=getattr(_FORM, name), metavar="NAME", help=", ".join(choices)
        )
    form.add_argument("--normalize", action="store_true", help="scale embeddings and prototypes to unit norm")
    form.add_argument(
        "--num-prototypes", type=int, metavar="P", help="so many, and a linear map; one a class if not given"
    )
    return parser


def _option(field: Field) -> str:
    """Return the option of a field."""
    names = {"num_classes": "classes", "in_channels": "channels"}
    return f"--{names.get(field.name, field.name).replace('_', '-')}"
