"""The command ``tnn-export ensemble``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tnn_export.bundle.ensemble import OUTPUTS, SCORES, export_ensemble
from tnn_export.bundle.members import read_members
from tnn_export.commands.arguments import add_score_options
from tnn_export.formats import FORMATS
from tnn_runtime.bundle.manifest import BUNDLE
from tnn_runtime.bundle.outputs import refuse_among_images
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser, say
from tnn_train.model.samples import open_folder, read_held_out

__all__ = ["make_parser", "run"]

_EPILOG = """examples:
  tnn-export ensemble runs/a-bundle runs/b-bundle runs/c-bundle -o runs/abc
  tnn-export ensemble runs/a-bundle runs/b-bundle -o runs/ab --images holiday/ --outputs member_probabilities
  tnn-runtime bench runs/abc runs/a-bundle      what it costs

The probabilities of an ensemble are the mean of those of its members, each with its own temperature. Members may have
other heads, backbones, normalisations and precisions; they have the same classes and take images of the same size. The
ensemble is written only if it answers what the members, each run by itself, answer on the images of the proof."""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "tnn-export ensemble", "Make one bundle of several: it answers with the mean of their probabilities.", _EPILOG
    )
    add = parser.add_argument
    add("members", type=Path, nargs="+", metavar="BUNDLE", help="bundle folders that tnn-export wrote, two or more")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="bundle folder to make")
    add(
        "--formats",
        nargs="+",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; if not given, onnx and torchscript where all members have them",
    )
    add(
        "--outputs",
        nargs="+",
        default=[],
        metavar="OUTPUT",
        help=f"what to return beside logits and embedding: {', '.join(OUTPUTS)}",
    )
    add_score_options(parser, f"what to reject by: {', '.join(SCORES)}; if not given, probability")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of images for the proof, with a subfolder for each class if their classes are known, and perhaps "
        "split: then all but train is used; if not given, the images of the first member's proof",
    )
    add(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="refuse members that are not signed by the owner of this Ed25519 key",
    )
    add("--sign", type=Path, metavar="PEM", help="sign the bundle with this Ed25519 private key")
    add("--overwrite", action="store_true", help="replace an existing bundle")
    return parser


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export ensemble``."""
    refuse_existing(options.out, BUNDLE, overwrite=options.overwrite)
    refuse_among_images(options.out, options.images)
    members = read_members(options.members, options.public_key)
    images, labels = None, None
    if options.images is not None:
        images, labels = read_held_out(open_folder(options.images), members.preprocessing, members.class_names)
    report = export_ensemble(
        members,
        options.out,
        options.formats,
        outputs=options.outputs,
        reject_score=options.reject_score,
        coverage=options.coverage,
        proof_images=options.proof_images,
        temperature=options.temperature,
        images=images,
        labels=labels,
        sign=options.sign,
        overwrite=options.overwrite,
    )
    say(*report.table().split("\n"))
    say(f"wrote {options.out}")
    if "onnx" in report.stages:
        say(f"next: tnn-runtime predict {options.out} IMAGE...")
