"""The command ``tnn-export``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tnn_export.bundle.inspect import describe_bundle, inspect_bundle
from tnn_export.bundle.provenance import load_with_results
from tnn_export.bundle.write import export_bundle
from tnn_export.commands import edit, ensemble, importing, pair, slim, triton
from tnn_export.commands.arguments import add_export_options, export_options
from tnn_export.proof.check import check_bundle
from tnn_export.proof.report import ParityError
from tnn_runtime.answers.reject import DENSITY_SCORES
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.bundle.manifest import BUNDLE
from tnn_runtime.bundle.outputs import check_file, refuse_among_images
from tnn_runtime.bundle.storage import refuse_existing, stands, write_json
from tnn_runtime.console import Parser, notes, say
from tnn_runtime.errors import UsageError
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.density import find_density
from tnn_train.model.exemplars import LOOKED_AT, find_exemplars
from tnn_train.model.samples import open_folder, read_calibration, read_held_out, read_training

__all__ = ["COMMANDS", "EXPORT", "command"]

_logger = logging.getLogger(__name__)

_SCORES = " or ".join(DENSITY_SCORES)

_EPILOG = """examples:
  tnn-export runs/photos/best -o runs/photos-bundle
  tnn-export runs/photos/best -o runs/photos-bundle --formats onnx torchscript pt2 --images holiday/ --overwrite
  tnn-export runs/photos/best -o runs/photos-int8 --formats onnx --precision int8
  tnn-export check runs/photos-bundle      the proof again, on this machine
  tnn-export inspect runs/photos-bundle    what is inside
  tnn-export edit --help                   a checkpoint without some features, or with names of features
  tnn-export add-class --help              a checkpoint with one more class, from a few images
  tnn-export import --help                 checkpoints trained with other Tversky layers, and linear ones
  tnn-export ensemble --help               one bundle of several, with the mean of their probabilities
  tnn-export pair --help                   an untrained Tversky/linear pair, to measure their speed
  tnn-export sign runs/photos-bundle --key KEY.pem
  tnn-export slim runs/photos-bundle -o runs/photos-slim    without what serving can do without
  tnn-export triton runs/photos-bundle -o repository    models of NVIDIA Triton Inference Server

The bundle is written only if every artifact, read back from disk in a process of its own, gives the outputs of eager
PyTorch in float32, on real, random and adversarial images in several batch sizes: within 1e-4 in fp32, and within the
bounds of docs/exporting.md in the other precisions. A difference may be explained by a feature on the edge of its
membership; such samples are proven one by one and counted apart."""


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-export``."""
    parser, run = COMMANDS[EXPORT]
    if arguments and arguments[0] in COMMANDS:
        (parser, run), arguments = COMMANDS[arguments[0]], arguments[1:]
    elif arguments:
        _refuse_unknown(*arguments)
    with notes("tnn-export"):
        run(parser().parse_args(arguments))


def _refuse_unknown(first: str, *others: str) -> None:
    """Refuse what is no command and no checkpoint, unless it can only be meant as a checkpoint."""
    if first.startswith("-") or stands(Path(first)):
        return
    hint = nearest(first, COMMANDS)
    if hint or not any(word.startswith("-o") or word.partition("=")[0] == "--out" for word in others):
        raise UsageError(f"{first!r} is no command, and no checkpoint folder{hint}; see tnn-export --help")


def _export_parser() -> Parser:
    parser = Parser(
        "tnn-export", "Export a checkpoint to a bundle that runs without torch, and prove it equal.", _EPILOG
    )
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint folder that tnn-train wrote, such as runs/photos/best"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="bundle folder to make")
    add_export_options(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of images for the proof, with a subfolder for each class if their classes are known, and perhaps "
        "split: then all but train is used; if not given, the validation images in the checkpoint",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="folder of images that int8 takes its ranges from; if it is split, train is used; if not given, the "
        "training images in the checkpoint",
    )
    parser.add_argument(
        "--exemplars",
        type=Path,
        metavar="FOLDER",
        help="folder of training images with a subfolder for each class, to find exemplars in; if it is split, train "
        "is used; if not given, the exemplars in the checkpoint",
    )
    parser.add_argument(
        "--density",
        type=Path,
        metavar="FOLDER",
        help=f"folder of training images with a subfolder for each class, for a reject score of {_SCORES}: where their "
        "embeddings lie; if it is split, train is used; if not given, what the checkpoint has",
    )
    parser.add_argument(
        "--twin", type=Path, metavar="CHECKPOINT", help="another head on the same data, for the metrics in the card"
    )
    parser.add_argument("--sign", type=Path, metavar="PEM", help="sign the bundle with this Ed25519 private key")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser


def _export(options: argparse.Namespace) -> None:
    how = export_options(options)
    refuse_existing(options.out, BUNDLE, overwrite=options.overwrite)
    refuse_among_images(options.out, options.images, options.calibration, options.exemplars, options.density)
    checkpoint = load_with_results(options.checkpoint)
    images, labels, calibration = None, None, None
    if options.images is not None:
        images, labels = read_held_out(open_folder(options.images), checkpoint.preprocessing, checkpoint.class_names)
    if options.calibration is not None and how.precision != "int8":
        _logger.warning("--calibration does nothing with --precision %s", how.precision)
    elif options.calibration is not None:
        calibration = read_calibration(open_folder(options.calibration), checkpoint.preprocessing)
    if options.exemplars is not None and not how.exemplars:
        raise UsageError("got both --exemplars and --no-exemplars; give the one that you mean")
    if options.exemplars is not None:
        checkpoint = _with_exemplars(checkpoint, options.exemplars)
    if options.density is not None:
        checkpoint = _with_density(checkpoint, options.density)
    report = export_bundle(
        checkpoint,
        options.out,
        options=how,
        images=images,
        labels=labels,
        calibration=calibration,
        twin=options.twin,
        sign=options.sign,
        overwrite=options.overwrite,
    )
    say(*report.table().split("\n"))
    say(f"wrote {options.out}")
    if "onnx" in how.formats:
        say(f"next: tnn-runtime predict {options.out} IMAGE...")


def _with_exemplars(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return a checkpoint with exemplars from a folder of training images."""
    preprocessing, names = checkpoint.preprocessing, checkpoint.class_names
    images, labels = read_training(open_folder(folder), preprocessing, names, LOOKED_AT)
    found = find_exemplars(checkpoint.model, preprocessing, images.__getitem__, labels, names)
    if found is None:
        raise UsageError(
            f"none of the images in {folder} has a feature that this {checkpoint.config.head} head can show; leave "
            "--exemplars out"
        )
    return dataclasses.replace(checkpoint, exemplars=found)


def _with_density(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return a checkpoint that knows where the embeddings of a folder of training images lie."""
    preprocessing, names = checkpoint.preprocessing, checkpoint.class_names
    images, labels = read_training(open_folder(folder), preprocessing, names, LOOKED_AT)
    density = find_density(checkpoint.model, preprocessing, images.__getitem__, labels)
    if density is None:
        raise UsageError(f"for some images in {folder} the model gives no finite numbers; leave --density out")
    return dataclasses.replace(checkpoint, density=density)


def _check_parser() -> Parser:
    parser = Parser(
        "tnn-export check",
        "Repeat the proof of a bundle here: every artifact against what eager PyTorch gave when the bundle was made.",
        "example:\n  tnn-export check runs/photos-bundle --device cuda",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="refuse a bundle that is not signed by the owner of this Ed25519 key",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the whole report, sample by sample")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.json is not None:
        check_file(options.json, "--json")
    report = check_bundle(options.bundle, options.device, options.public_key)
    say(*report.table().split("\n"))
    if options.json is not None:
        write_json(options.json, report.to_dict())
    if not report.passed:
        raise ParityError(report, f"{options.bundle} does not pass its proof on {options.device}")


def _inspect_parser() -> Parser:
    parser = Parser(
        "tnn-export inspect",
        "Print what is inside a bundle, after every file's hash was checked.",
        "example:\n  tnn-export inspect runs/photos-bundle --json | jq .parity",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def _inspect(options: argparse.Namespace) -> None:
    content = inspect_bundle(options.bundle)
    if options.json:
        print(json.dumps(content, indent=2))
    else:
        say(*describe_bundle(content).split("\n"))


def _sign_parser() -> Parser:
    parser = Parser(
        "tnn-export sign",
        "Sign a bundle, so that who has the public key can tell that it is yours.",
        """examples:
  openssl genpkey -algorithm ed25519 -out KEY.pem         the private key: keep it secret
  openssl pkey -in KEY.pem -pubout -out PUB.pem           the public key: give it to who runs the bundle
  tnn-export sign runs/photos-bundle --key KEY.pem
  tnn-runtime predict runs/photos-bundle IMAGE... --public-key PUB.pem""",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="Ed25519 private key")
    return parser


def _sign(options: argparse.Namespace) -> None:
    from tnn_export.bundle.signing import sign_bundle

    say(f"wrote {sign_bundle(options.bundle, options.key)}")


EXPORT = "export"
COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], None]]] = {
    EXPORT: (_export_parser, _export),
    "check": (_check_parser, _check),
    "inspect": (_inspect_parser, _inspect),
    "edit": (edit.make_parser, edit.run),
    "add-class": (edit.make_class_parser, edit.run_class),
    "import": (importing.make_parser, importing.run),
    "ensemble": (ensemble.make_parser, ensemble.run),
    "pair": (pair.make_parser, pair.run),
    "sign": (_sign_parser, _sign),
    "slim": (slim.make_parser, slim.run),
    "triton": (triton.make_parser, triton.run),
}
"""What makes the parser of each command, and what runs it; without the name of one, a checkpoint is exported."""
