"""The command ``tnn-runtime``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tnn_runtime.answers.results import Predictions, plain_levels
from tnn_runtime.backends.devices import DEVICES
from tnn_runtime.bulk import classify_files
from tnn_runtime.classifier import Classifier
from tnn_runtime.commands.bench import add_bench
from tnn_runtime.commands.doctor import examine
from tnn_runtime.commands.explain import add_explain
from tnn_runtime.commands.files import find_files, refuse_unusable
from tnn_runtime.commands.serve import add_serve
from tnn_runtime.console import CommandParser, Parser, any_path, notes, say
from tnn_runtime.text import csv_line, printable

__all__ = ["build_parser", "command"]

_REJECTED = "rejected"


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-runtime``."""
    options = build_parser().parse_args(arguments)
    with options.log("tnn-runtime"):
        options.run(options)


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser("tnn-runtime", "Run exported bundles, without torch.")
    parser.set_defaults(log=notes)
    commands: argparse._SubParsersAction[Parser] = parser.add_subparsers(
        required=True, metavar="COMMAND", parser_class=CommandParser
    )
    _add_predict(commands)
    _add_public_key(add_explain(commands))
    _add_public_key(add_serve(commands))
    _add_public_key(add_bench(commands))
    doctor = commands.add_parser(
        "doctor",
        help="print what works on this machine",
        description="Print versions, the devices that really run a model, and what is missing.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_predict(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        description="Classify image files; a folder stands for every file below it. Files that cannot be used are "
        "named on standard error, and make the exit code 1.",
        epilog="example:\n  tnn-runtime predict runs/photos-bundle holiday.jpg more/ --top-k 3 --format csv > "
        "labels.csv",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("images", type=any_path, nargs="+", help="image files or folders")
    parser.add_argument("--top-k", type=int, default=1, help="classes to print for each image")
    parser.add_argument("--device", default="auto", help=DEVICES)
    parser.add_argument("--threads", type=int, help="CPU threads, all usable cores if not given")
    parser.add_argument(
        "--reject", action="store_true", help="answer 'rejected' where the score is below the bundle's threshold"
    )
    _add_public_key(parser)
    parser.add_argument("--format", choices=("text", "csv", "jsonl"), default="text", help="how to print")
    parser.set_defaults(run=_predict)


def _add_public_key(parser: Parser) -> None:
    parser.add_argument(
        "--public-key", type=Path, metavar="PEM", help="refuse what is not signed by the owner of this Ed25519 key"
    )


def _predict(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    with Classifier.load(
        options.bundle, options.device, threads=options.threads, public_key=options.public_key
    ) as classifier:
        found = find_files(options.images)
        total = len(found.files) + len(found.errors)
        show = _printer(options.format, found.files)
        with tqdm(total=len(found.files), desc="classifying", unit="image", disable=None, delay=2) as progress:
            for file, ranked, error in classify_files(classifier, found.files, options.top_k, reject=options.reject):
                if error:
                    found.errors.append(error)
                else:
                    show(file, ranked)
                progress.update()
    refuse_unusable("tnn-runtime", found, total)


def _printer(style: str, files: list[Path]) -> Callable[[Path, Predictions], None]:
    """Return a function that prints the predictions for one file."""
    if style == "jsonl":
        return lambda file, ranked: print(
            json.dumps(
                {
                    "path": str(file),
                    "predictions": [dataclasses.asdict(prediction) for prediction in ranked],
                    "rejected": ranked.rejected,
                    "reject_score": ranked.reject_score,
                    **plain_levels(ranked),
                }
            )
        )
    if style == "text":
        width = max((len(printable(str(file))) for file in files), default=0)
        return lambda file, ranked: print(
            f"{printable(str(file)):{width}}  "
            + ("  ".join(f"{printable(best.label)} {best.score:.4f}" for best in ranked) or _REJECTED)
        )
    print(csv_line(["path", "rank", "label", "score"]))
    return lambda file, ranked: print(
        "\n".join(
            csv_line(row)
            for row in [[file, rank, best.label, f"{best.score:.6f}"] for rank, best in enumerate(ranked, 1)]
            or [[file, "", _REJECTED, ""]]
        )
    )


def _doctor(options: argparse.Namespace) -> None:
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        say(f"{'ok' if finding.works else '--'}  {finding.name:{width}}  {finding.detail}")
