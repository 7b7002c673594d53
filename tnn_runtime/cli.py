"""The command ``tnn-runtime``."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tnn_runtime.backends.devices import DEVICES
from tnn_runtime.benchmark import Comparison, compare_bundles, machine
from tnn_runtime.classifier import Classifier
from tnn_runtime.console import Parser
from tnn_runtime.cores import usable_cores
from tnn_runtime.doctor import examine
from tnn_runtime.errors import InputError, UsageError
from tnn_runtime.preprocess import find_images
from tnn_runtime.results import Prediction

__all__ = ["command"]

_CHUNK = 256
_REJECTED = "rejected"


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-runtime``."""
    parser = Parser("tnn-runtime", "Run exported bundles, without torch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_predict(commands)
    _add_bench(commands)
    doctor = commands.add_parser(
        "doctor",
        help="print what works on this machine",
        description="Print versions, the devices that really run a model, and what is missing.",
    )
    doctor.set_defaults(run=_doctor)
    options = parser.parse_args(arguments)
    options.run(options)


def _add_predict(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify image files",
        description="Classify image files; a folder stands for every file below it.",
        epilog="example:\n  tnn-runtime predict runs/photos-bundle holiday.jpg more/ --top-k 3 --format csv > "
        "labels.csv",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("images", type=Path, nargs="+", help="image files or folders")
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
        files = [file for path in options.images for file in (_files(path) if path.is_dir() else [path])]
        show = _printer(options.format, files)
        with tqdm(total=len(files), desc="classifying", unit="image", disable=None, delay=2) as progress:
            for start in range(0, len(files), _CHUNK):
                chunk = files[start : start + _CHUNK]
                for file, ranked in zip(
                    chunk, classifier.predict(chunk, options.top_k, reject=options.reject), strict=True
                ):
                    show(file, ranked)
                progress.update(len(chunk))


def _files(folder: Path) -> list[Path]:
    files = find_images(folder)
    if not files:
        raise InputError(f"{folder} has no files; expected images")
    return files


def _printer(style: str, files: list[Path]) -> Callable[[Path, list[Prediction]], None]:
    """Return a function that prints the predictions for one file."""
    if style == "jsonl":
        return lambda file, ranked: print(
            json.dumps({"path": str(file), "predictions": [dataclasses.asdict(prediction) for prediction in ranked]})
        )
    if style == "text":
        width = max(len(str(file)) for file in files)
        return lambda file, ranked: print(
            f"{file!s:{width}}  "
            + ("  ".join(f"{prediction.label} {prediction.score:.4f}" for prediction in ranked) or _REJECTED)
        )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "score"])
    return lambda file, ranked: writer.writerows(
        [[file, rank, prediction.label, f"{prediction.score:.6f}"] for rank, prediction in enumerate(ranked, 1)]
        or [[file, "", _REJECTED, ""]]
    )


def _add_bench(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="time one bundle against another",
        description="Time bundle A against bundle B: interleaved, with a second copy of B as the control.",
        epilog="example:\n  tnn-runtime bench runs/demo/bundle-tversky runs/demo/bundle-linear --batch 1 32 "
        "--threads 1",
    )
    parser.add_argument("a", type=Path, help="bundle in the numerator of the ratio")
    parser.add_argument("b", type=Path, help="bundle in the denominator")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images a call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, usable_cores()], help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    _add_public_key(parser)
    parser.add_argument("--blocks", type=int, default=30, help="turns that each gets")
    parser.add_argument("--json", type=Path, help="also write everything, raw samples included, to this file")
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        raise UsageError(f"{options.json} is a folder, or its folder does not exist; choose another file for --json")
    threads = list(dict.fromkeys(options.threads))
    results: list[Comparison] = []
    with tqdm(
        total=len(threads) * len(options.batch) * options.blocks, desc="timing", unit="block", disable=None, delay=2
    ) as progress:
        for count in threads:
            results += compare_bundles(
                options.a,
                options.b,
                options.batch,
                device=options.device,
                threads=count,
                blocks=options.blocks,
                public_key=options.public_key,
                progress=progress.update,
            )
    print(f"A = {options.a}\nB = {options.b}\n{machine()['cpu']}, {options.device}, {options.blocks} blocks")
    print(
        f"{'threads':>7} {'batch':>5} {'A p50 ms':>9} {'B p50 ms':>9} {'A p99 ms':>9} {'B p99 ms':>9} {'A/B':>6} "
        f"{'95% interval':>15} {'B/B control':>11}"
    )
    for r in results:
        interval = f"{r.ratio_ci95[0]:.3f} to {r.ratio_ci95[1]:.3f}"
        print(
            f"{r.threads:7} {r.batch:5} {r.a_ms['p50']:9.3f} {r.b_ms['p50']:9.3f} {r.a_ms['p99']:9.3f} "
            f"{r.b_ms['p99']:9.3f} "
            f"{r.ratio:6.3f} {interval:>15} {r.aa_ratio:11.3f}"
        )
    if options.json is not None:
        content = {
            "a": str(options.a),
            "b": str(options.b),
            "machine": machine(),
            "results": [dataclasses.asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _doctor(options: argparse.Namespace) -> None:
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.works else '--'}  {finding.name:{width}}  {finding.detail}")
