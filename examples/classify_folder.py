"""Classify every image below a folder: ``python examples/classify_folder.py BUNDLE FOLDER --out labels.csv``.

``labels.jsonl`` gives a JSON object an image instead. Images are read, classified and written as a stream, so that a
folder may hold millions. What cannot be read is an error in the output and does not stop the others. The output appears
when it is complete: after an interrupt there is none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from tnn_runtime import Classifier, InputError, Prediction, UsageError
from tnn_runtime.bulk import classify_files
from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.console import Parser, any_path, positive_int, run, say
from tnn_runtime.images.walk import Kind, walk
from tnn_runtime.text import csv_line

Write = Callable[[Path, list[Prediction], str], object]


def find(folder: Path) -> Iterator[Path]:
    """Yield what is below a folder, always in the same order, but for folders, hidden files and clutter."""
    return (entry.path for entry in walk(folder) if entry.kind in (Kind.FILE, Kind.UNUSABLE))


def csv_writer(file: TextIO) -> Write:
    """Return what writes a row for each prediction, or one with the error."""
    print(csv_line(["path", "rank", "label", "score", "error"]), file=file)

    def write(path: Path, ranked: list[Prediction], error: str) -> None:
        rows = [[path, rank, best.label, f"{best.score:.6f}", ""] for rank, best in enumerate(ranked, 1)]
        print("\n".join(map(csv_line, rows or [[path, "", "", "", error]])), file=file)

    return write


def jsonl_writer(file: TextIO) -> Write:
    """Return what writes a line for each image."""

    def write(path: Path, ranked: list[Prediction], error: str) -> None:
        found = {"error": error} if error else {"predictions": [dataclasses.asdict(best) for best in ranked]}
        print(json.dumps({"path": str(path), **found}), file=file)

    return write


WRITERS: dict[str, Callable[[TextIO], Write]] = {".csv": csv_writer, ".jsonl": jsonl_writer}


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("classify_folder", __doc__ or "")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder that tnn-export wrote")
    parser.add_argument("folder", type=any_path, metavar="FOLDER", help="folder of images, with subfolders")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .csv or .jsonl")
    parser.add_argument("--top-k", type=positive_int, default=1, help="classes to write for each image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is no folder; expected one with images in it")
    if options.out.suffix not in WRITERS or not options.out.parent.is_dir():
        raise UsageError(
            f"got --out {options.out}; expected a file that ends with {' or '.join(WRITERS)}, in a folder that exists"
        )
    check_file(options.out, "--out")
    total = sum(1 for _ in find(options.folder))
    if total == 0:
        raise InputError(f"{options.folder} has no files; expected images")
    failed = 0
    partial = options.out.with_name(f".{options.out.name}.partial")
    try:
        with (
            Classifier.load(options.bundle, options.device) as classifier,
            partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
            tqdm(total=total, desc="classifying", unit="image", disable=None) as progress,
        ):
            write = WRITERS[options.out.suffix](file)
            for path, ranked, error in classify_files(classifier, find(options.folder), options.top_k):
                write(path, ranked, error)
                failed += bool(error)
                progress.update()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(options.out)
    finally:
        partial.unlink(missing_ok=True)
    say(f"wrote {options.out}: {total - failed} images classified, {failed} files with an error")
    if failed == total:
        raise InputError(f"no file of {options.folder} can be used; {options.out} says why; expected images")


if __name__ == "__main__":
    sys.exit(run("classify_folder", command))
