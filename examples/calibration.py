"""Whether scores mean what they say: `python examples/calibration.py runs/mnist-bundle --data mnist`.

Classifies the test images of a data set, which the export did not fit the temperature on, and prints for each bundle
the expected calibration error over 15 bins, and the mean negative log likelihood, of scores without its temperature and
with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tnn_export.bundle.temperature import Trust
from tnn_runtime import Classifier, Manifest
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import load_data
from tnn_train.data import ImageSet
from tnn_train.data.images import even_sample

HEADER = ("bundle", "images", "accuracy", "temperature", "ECE before", "ECE after", "NLL before", "NLL after")


def row(bundle: Path, test: ImageSet, limit: int) -> tuple[str, ...]:
    """Return what the test images say of one bundle, in the order of `HEADER`."""
    manifest, _ = Manifest.read(bundle)
    images = ImageSet(test.sources, test.labels, manifest.preprocessing).sample(limit)
    labels = test.labels[even_sample(len(test), limit)]
    with Classifier.load(bundle, "cpu") as classifier:
        logits = classifier.logits(images).astype(np.float64)
    before, after = Trust.of(logits, labels), Trust.of(logits / (manifest.temperature or 1), labels)
    measured = (before.ece, after.ece, before.nll, after.nll)
    temperature = "none" if manifest.temperature is None else f"{manifest.temperature:.3f}"
    accuracy = f"{(logits.argmax(axis=1) == labels).mean():.4f}"
    return (bundle.name, str(len(labels)), accuracy, temperature, *(f"{value:.4f}" for value in measured))


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("calibration", __doc__ or "")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="of one data set")
    parser.add_argument("--data", required=True, metavar="NAME|FOLDER", help="as for tnn-train")
    parser.add_argument("--data-root", type=Path, default="data", help="as for tnn-train")
    parser.add_argument("--limit", type=positive_int, default=10_000, help="test images, at most")
    options = parser.parse_args(arguments)
    test = load_data(options.data, root=options.data_root).test
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for bundle in options.bundles:
        print(f"| {' | '.join(row(bundle, test, options.limit))} |")


if __name__ == "__main__":
    sys.exit(run("calibration", command))
