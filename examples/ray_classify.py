"""Classify all images of a folder with Ray Data: ``python examples/ray_classify.py BUNDLE FOLDER --out labels``.

It runs on the cluster that ``RAY_ADDRESS`` names, whose workers have to see both folders, or else on this machine. The
folder ``labels`` gets Parquet files with a row for each image, or with ``--format csv`` CSV files with a row for each
of its best classes. Files that are no images are rows with an error.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.data
from ray.data.expressions import col

from tnn_runtime import InputError, OutputExistsError, UsageError
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.bundle.outputs import PARTIAL, check_folder, naming
from tnn_runtime.console import Parser, any_path, positive_int, run, say
from tnn_runtime.images.walk import Kind, walk
from tnn_runtime.ray.data import FileClassifier

BATCH = 256
"""Files that a worker is given at a time: several batches of the model, so that it decodes while the model runs."""


def by_rank(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the best classes, or one with the error: cells of CSV hold no lists."""
    for rank, (label, score) in enumerate(zip(row["label"], row["score"], strict=True), 1):
        yield {"path": row["path"], "rank": rank, "label": label, "score": score, "error": ""}
    if row["error"]:
        yield {"path": row["path"], "rank": None, "label": None, "score": None, "error": row["error"]}


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("ray_classify", __doc__ or "")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder that tnn-export wrote")
    parser.add_argument("folder", type=any_path, metavar="FOLDER", help="folder of images, with subfolders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which must not exist")
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet", help="what to write")
    parser.add_argument("--top-k", type=positive_int, default=1, help="classes to write for each image")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes, each with the bundle loaded")
    parser.add_argument("--cores", type=positive_int, default=1, help="CPU cores for each of them")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each of them, such as 1 or 0.5")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is no folder; expected one with images in it")
    if options.out.exists():
        raise OutputExistsError(f"{options.out} already exists; choose another folder for --out")
    check_folder(options.out, "--out")
    open_bundle(options.bundle)  # Ray would tell of a bad one in many lines.
    found = (entry.path for entry in walk(options.folder.absolute()) if entry.kind in (Kind.FILE, Kind.UNUSABLE))
    files = [{"path": str(path)} for path in found]
    if not files:
        raise InputError(f"{options.folder} has no files; expected images")
    rows = (
        ray.data.from_items(files)
        .map_batches(
            FileClassifier,
            fn_constructor_args=[str(options.bundle.absolute()), "cuda" if options.gpus else "cpu"],
            fn_constructor_kwargs={"top_k": options.top_k},
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=options.cores,
            num_gpus=options.gpus,
        )
        .materialize()
    )
    failed = rows.filter(expr=col("error") != "").count()
    partial = options.out.absolute().with_name(f".{options.out.name}{PARTIAL}")
    try:
        with naming(options.out, partial):
            if options.format == "csv":
                rows.flat_map(by_rank).write_csv(str(partial))
            else:
                rows.write_parquet(str(partial))
            partial.rename(options.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"wrote {options.out}: {len(files) - failed} images classified, {failed} files with an error")
    if failed == len(files):
        raise InputError(f"no file of {options.folder} can be used; {options.out} says why; expected images")


if __name__ == "__main__":
    sys.exit(run("ray_classify", command, extra="ray"))
