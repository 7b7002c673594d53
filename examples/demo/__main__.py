"""The whole way in one run: images, training, export with proof, inference without torch, and latency.

Trains a ResNet-18 with a Tversky head and its linear twin on the 1,797 handwritten digits of scikit-learn, compares
their accuracies, exports both, classifies the test images from PNG files, times one against the other, and writes a
report.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import write_report
from tqdm import tqdm

from tnn_export import ExportError, ExportOptions, ParityReport, export_bundle
from tnn_runtime import Classifier, TnnError
from tnn_runtime.bench import Comparison, Latency, compare_bundles
from tnn_runtime.bundle.storage import FolderKind, refuse_existing, write_json
from tnn_runtime.console import Parser, run
from tnn_runtime.queue.cores import usable_cores
from tnn_train import ImageData, ModelConfig, TrainConfig, load_data, train
from tnn_train.commands.reporting import report_on
from tnn_train.evaluation.metrics import paired_difference
from tnn_train.training.loop import TrainResult, pick_device

HEADS = ("tversky", "linear")
BATCHES = (1, 32)
PROCESSES = 3
_IMAGES = "test-images"
_DEMO = FolderKind("demo", _IMAGES, ("run-*", "bundle-*", "report.html", "summary.json", "latency-samples.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    return run("demo", _demo, arguments)


def _demo(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    out: Path = options.out
    refuse_existing(out, _DEMO, overwrite=options.overwrite)
    if out.exists():
        shutil.rmtree(out)
    started = time.perf_counter()
    data = load_data("digits", image_size=options.image_size, limit=options.limit)
    recipe = TrainConfig(epochs=options.epochs, batch_size=64)

    runs, heads = {}, {}
    files, labels = _write_test_images(data, out / _IMAGES)
    for head in HEADS:
        _say(f"training ResNet-18 with a {head} head on {len(data.train)} digits")
        runs[head] = train(data, out / f"run-{head}", ModelConfig(backbone=options.backbone, head=head), recipe)
        report_on(runs[head], data, pick_device(recipe.device))
        _say(f"exporting {head}, with proof on the {len(data.test)} test images")
        bundle = out / f"bundle-{head}"
        images = data.test.sample(len(data.test))
        report = _export(runs[head].best, bundle, images, data.test.labels)
        print(report.table())
        heads[head] = {
            "test_accuracy": runs[head].test.accuracy,
            "runtime_accuracy": _runtime_accuracy(bundle, files, labels),
            "checkpoint": str(runs[head].best),
            "bundle": str(bundle),
            "parity": report.to_dict(),
        }
        if heads[head]["runtime_accuracy"] != heads[head]["test_accuracy"]:
            raise TnnError(
                f"{head}: accuracy {heads[head]['runtime_accuracy']} in the runtime, "
                f"{heads[head]['test_accuracy']} in training"
            )

    _say("timing tversky against linear")
    latency, machine = _latency(out, options.blocks)
    summary = {
        "dataset": data.name,
        "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "backbone": options.backbone,
        "image_size": options.image_size,
        "heads": heads,
        "difference": _difference(runs),
        "latency": latency,
        "machine": machine,
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "summary.json", summary)
    with ExitStack() as stack:
        classifiers = {head: stack.enter_context(Classifier.load(out / f"bundle-{head}", "cpu")) for head in HEADS}
        write_report(out / "report.html", summary, runs, data, classifiers)
    _farewell(out, summary)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "demo", "Train, export, prove, run and time a Tversky ResNet and its linear twin on handwritten digits."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it exists")
    parser.add_argument("--backbone", default="resnet18", help="as in tnn-train")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training set, for each head")
    parser.add_argument("--image-size", type=int, default=16, help="height and width of the model's input in pixels")
    parser.add_argument("--limit", type=int, help="use at most so many images for training and validation")
    parser.add_argument("--blocks", type=int, default=10, help="turns that each model gets in each process that times")
    return parser.parse_args(arguments)


def _write_test_images(data: ImageData, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the test images, as they were before any preprocessing, as ``CLASS/NUMBER.png``."""
    files, labels = [], []
    for number, (source, label) in enumerate(zip(data.test.sources, data.test.labels, strict=True)):
        name = data.class_names[label]
        file = folder / name / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(source)).save(file)
        files.append(file)
        labels.append(name)
    return files, labels


def _export(checkpoint: Path, bundle: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> ParityReport:
    """Export with feature maps, or without them where the backbone has none."""
    try:
        options = ExportOptions(outputs=("feature_maps",))
        return export_bundle(checkpoint, bundle, options=options, images=images, labels=labels)
    except ExportError as error:
        print(f"without feature maps: {error}")
        return export_bundle(checkpoint, bundle, images=images, labels=labels)


def _difference(runs: Mapping[str, TrainResult]) -> dict[str, Any]:
    """Return how much more accurate the Tversky head is, with a 95% interval as of images drawn at random."""
    tversky, linear = (runs[head].test.predictions == runs[head].test.labels for head in HEADS)
    value, low, high = paired_difference(tversky, linear)
    return {"accuracy": value, "ci95": (low, high)}


def _runtime_accuracy(bundle: Path, files: list[Path], labels: list[str]) -> float:
    with Classifier.load(bundle, "cpu") as classifier:
        answers = classifier.predict(files, top_k=1)
    return sum(ranked[0].label == label for ranked, label in zip(answers, labels, strict=True)) / len(files)


def _latency(out: Path, blocks: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Time both bundles with one thread and with all, and describe the machine; every sample goes into a file."""
    counts = list(dict.fromkeys((1, usable_cores())))
    a, b = (out / f"bundle-{head}" for head in HEADS)
    total = len(counts) * PROCESSES * len(BATCHES) * blocks
    with tqdm(total=total, desc="timing", unit="block", disable=None) as progress:
        report = compare_bundles(
            a, b, BATCHES, threads=counts, processes=PROCESSES, blocks=blocks, memory=False, progress=progress.update
        )
    raw = [dataclasses.asdict(comparison) for comparison in report.comparisons]
    (out / "latency-samples.json").write_text(json.dumps(raw) + "\n", encoding="utf-8")
    single, every = (
        {"threads": count, "batch": {str(c.batch): _entry(c) for c in report.comparisons if c.threads == count}}
        for count in (counts[0], counts[-1])
    )
    return {**single, "all_threads": every}, report.machine


def _entry(comparison: Comparison) -> dict[str, Any]:
    ratio, control = comparison.ratio, comparison.control
    return {
        "tversky_ms": _percentiles(comparison.a),
        "linear_ms": _percentiles(comparison.b),
        "ratio": ratio.value,
        "ratio_ci95": (ratio.low, ratio.high),
        "aa_ratio": control.value,
        "aa_ratio_ci95": (control.low, control.high),
    }


def _percentiles(found: Latency) -> dict[str, float]:
    return {"p50": found.p50.value, "p90": found.p90.value, "p99": found.p99.value}


def _farewell(out: Path, summary: dict[str, Any]) -> None:
    scripts = Path(sys.executable).parent
    scripts = scripts.relative_to(Path.cwd()) if scripts.is_relative_to(Path.cwd()) else scripts
    accuracies = ", ".join(f"{head} {values['test_accuracy']:.4f}" for head, values in summary["heads"].items())
    difference, (low, high) = summary["difference"]["accuracy"], summary["difference"]["ci95"]
    first = summary["latency"]["batch"]["1"]
    _say("done")
    print(f"""test accuracy: {accuracies}; the same from PNG files in the runtime
difference: {difference:+.4f}, 95% interval {low:+.4f} to {high:+.4f} over {summary["images"]["test"]} images
latency at batch 1, one thread: {first["ratio"]:.3f} x linear (control {first["aa_ratio"]:.3f})
{out}/report.html       open this in a browser; run-tversky/report.html shows the prototypes
{out}/summary.json      every number
{out}/bundle-tversky    what goes into production; bundle-linear is its twin

try next:
  {scripts}/tnn-runtime predict {out}/bundle-tversky {out}/test-images/3 --top-k 3
  {scripts}/tnn-runtime bench {out}/bundle-tversky {out}/bundle-linear
  {scripts}/tnn-train --data path/to/your/folder --out runs/mine""")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
