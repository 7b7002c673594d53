"""What each head costs where it is served: `python examples/heads/served.py runs/sweep/* --out runs/served`.

Takes finished runs of several heads, those of `tnn-train sweep` or `examples/accuracy/compare_heads.py`; runs whose
folders differ only in what follows the last dash are one head from several seeds. Exports the best checkpoint of each,
classifies the test set of the run with the bundle, and times the first bundle of each head against the first one of the
linear head. Prints a row for each head: accuracy, with the difference from linear paired by seed; calibration error of
the served scores; the size of the ONNX file; and ratios of latency. Bundles that exist are not made again.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from tnn_export import export_bundle
from tnn_runtime import Classifier
from tnn_runtime.answers.calibration import Calibration
from tnn_runtime.answers.ranking import softmax
from tnn_runtime.bench.comparison import compare_bundles
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.manifest import ONNX_FILE
from tnn_runtime.bundle.storage import stands
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.errors import UsageError
from tnn_train.data import DataConfig, load_data
from tnn_train.data.images import even_sample
from tnn_train.heads import BASELINE
from tnn_train.report.compare import Estimate, Table
from tnn_train.run_files import BEST
from tnn_train.training.results import Run, read_run

Seed: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Served:
    """A bundle on the test set of its run.

    Args:
        bundle: Where it lies.
        accuracy: Share of right answers, 0 to 1.
        ece: Expected calibration error of the scores, 0 to 1.
        size: Of the ONNX file, in KiB.
    """

    bundle: Path
    accuracy: float
    ece: float
    size: float


def serve(result: Run, folder: Path, most: int) -> Served:
    """Export the best checkpoint of a run, and classify up to so many images of its test set with the bundle."""
    bundle = folder / result.folder.name
    if not stands(bundle):
        export_bundle(result.folder / BEST, bundle, ("onnx",))
    config = decode(DataConfig, result.results.config["data"], "data")
    test = load_data(config).test
    test = test.subset(even_sample(len(test), most))
    with Classifier.load(bundle, "cpu", threads=1) as classifier:
        logits = classifier.logits(test.sample(len(test)))
        scores = softmax(logits, classifier.info["temperature"])
    right = logits.argmax(1) == test.labels
    ece = Calibration.of(scores.max(1), right).ece
    return Served(bundle, float(right.mean()), ece, (bundle / ONNX_FILE).stat().st_size / 1024)


def ratios(bundle: Path, baseline: Path, options: Namespace) -> list[str]:
    """Return the ratio of the latency of two bundles at each batch size, with its interval."""
    report = compare_bundles(
        *(bundle, baseline, options.batch), processes=options.processes, blocks=options.blocks, memory=False
    )
    return [f"{found.ratio.text()} (control {found.control.value:.3f})" for found in report.comparisons]


def row(
    name: str, members: Mapping[Seed, Served], linear: Mapping[Seed, Served], options: Namespace
) -> tuple[str, ...]:
    """Return the row of a head, whose bundles come by their seeds, beside those of the linear head."""
    accuracy = 100 * np.mean([one.accuracy for one in members.values()])
    ece = np.mean([one.ece for one in members.values()])
    common = [seed for seed in members if seed in linear]
    if not common:
        raise UsageError(f"the linear head has none of the seeds of {name}; train it from the same ones")
    first = members[common[0]]
    found = (name, str(len(members)), f"{accuracy:.2f}", f"{ece:.4f}", f"{first.size:,.0f}")
    if members is linear:
        return (*found, *("" for _ in ("difference", *options.batch)))
    differences = tuple(100 * (members[seed].accuracy - linear[seed].accuracy) for seed in common)
    return (*found, Estimate(differences).text("+.2f"), *ratios(first.bundle, linear[common[0]].bundle, options))


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("served", __doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folders")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the bundles are put")
    parser.add_argument("--limit", type=positive_int, default=2000, help="test images of each run, at most")
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 32], metavar="N", help="images a call")
    parser.add_argument("--processes", type=positive_int, default=5, help="as for tnn-runtime bench")
    parser.add_argument("--blocks", type=positive_int, default=12, help="as for tnn-runtime bench")
    options = parser.parse_args(arguments)
    groups: dict[str, list[Run]] = defaultdict(list)
    for folder in options.runs:
        groups[folder.name.rpartition("-")[0] or folder.name].append(read_run(folder))
    heads = {name: members[0].results.config["model"]["head"] for name, members in groups.items()}
    baseline = next((name for name, head in heads.items() if head == BASELINE), None)
    if baseline is None:
        raise UsageError(f"none of the {len(options.runs)} runs has a {BASELINE} head; give one to compare with")
    served = {
        name: {found.seed: serve(found, options.out, options.limit) for found in tqdm(members, desc=name, disable=None)}
        for name, members in groups.items()
    }
    rows = tuple(row(name, members, served[baseline], options) for name, members in served.items())
    title = f"Bundles on up to {options.limit:,} test images; differences and ratios are to {baseline}"
    columns = ("head", "seeds", "accuracy in %", "ECE", "KiB", "difference in points")
    batches = (f"latency, batch {batch}" for batch in options.batch)
    print(f"{title}\n\n{Table(title, (*columns, *batches), rows).markdown()}")


if __name__ == "__main__":
    sys.exit(run("served", command))
