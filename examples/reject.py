"""Which score tells what to reject: `python examples/reject.py runs/mnist/best --data mnist --outside cifar/test`.

Classifies the test images of a data set, and images that do not belong to it: those of a folder, noise, and test images
that are inverted or turned. Prints how well each score tells these, and the wrong answers, from the right ones (area
under the ROC curve: 0.5 is chance, 1 is perfect), and what shares are rejected at the thresholds that the validation
images in the checkpoint give. Where the checkpoint does not know where the embeddings of its training images lie, the
training images of the data set tell. Of several checkpoints it prints the mean, and the smallest and the largest.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from tnn_runtime.answers.density import Density
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import ALL_SCORES, Reject, calibrate, check_threshold
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.errors import UsageError
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, load_checkpoint, load_data
from tnn_train.data import ImageSet
from tnn_train.data.images import even_sample
from tnn_train.model.density import find_density
from tnn_train.model.image_model import Normalize

BATCH_SIZE = 64
COVERAGES = (0.95, 0.99)
Pixels = NDArray[np.uint8]
Table = dict[str, dict[str, list[float]]]


def outputs_of(checkpoint: Checkpoint, images: Pixels) -> Outputs:
    """Return logits and embeddings of images ``[N, H, W, C]``."""
    normalize = Normalize(checkpoint.preprocessing)
    with torch.inference_mode():
        found = [
            checkpoint.model.answer(normalize(batch)) for batch in torch.split(torch.from_numpy(images), BATCH_SIZE)
        ]
    logits, embedding = (torch.cat(values).numpy() for values in zip(*found, strict=True))
    return Outputs(logits, embedding)


def density_of(checkpoint: Checkpoint, train: ImageSet) -> Density:
    """Return where the embeddings of the training images lie."""
    if checkpoint.density is not None:
        return checkpoint.density
    images = ImageSet(train.sources, train.labels, checkpoint.preprocessing)

    def read(places: NDArray[np.int64]) -> Pixels:
        return np.stack([images.decoded(place) for place in places.tolist()])

    density = find_density(checkpoint.model, checkpoint.preprocessing, read, train.labels)
    if density is None:
        raise UsageError("the model gives no finite numbers for some training images; give another checkpoint")
    return density


def strangers(test: Pixels, folder: Path, preprocessing: Preprocessing, count: int) -> dict[str, Pixels]:
    """Return images that do not belong to the data set, by their kind."""
    files = find_images(folder) if folder.is_dir() else []
    if not files:
        raise UsageError(f"{folder} has no files; expected a folder of images for --outside")
    return {
        "the folder": preprocessing.batch([files[place] for place in even_sample(len(files), count)]),
        "noise": np.random.default_rng(0).integers(0, 256, (count, *test.shape[1:]), dtype=np.uint8),
        "inverted": 255 - test[:count],
        "turned around": np.ascontiguousarray(test[:count, ::-1, ::-1]),
    }


def groups_of(checkpoint: Checkpoint, test: ImageSet, folder: Path, count: int) -> dict[str, Outputs]:
    """Return the outputs for test images that are answered right and wrong, and those for strangers."""
    images = ImageSet(test.sources, test.labels, checkpoint.preprocessing).sample(2 * count)
    outputs = outputs_of(checkpoint, images)
    is_right = outputs.logits.argmax(1) == test.labels[even_sample(len(test), 2 * count)]
    if is_right.all() or not is_right.any():
        raise UsageError(f"all answers to {len(images)} test images are alike, right or wrong; give a larger --limit")
    outside = strangers(images, folder, checkpoint.preprocessing, count)
    return {
        "right": outputs.rows(np.flatnonzero(is_right).tolist()),
        "wrong": outputs.rows(np.flatnonzero(~is_right).tolist()),
        **{kind: outputs_of(checkpoint, group) for kind, group in outside.items()},
    }


def auroc(right: Outputs, others: Outputs, score: str, density: Density) -> float:
    """Return how often a right answer has a larger score than one of the others."""
    rule = Reject(score, None, COVERAGES[0], 0)
    scores = np.concatenate([rule.scores(group, density) for group in (right, others)])
    return float(roc_auc_score(np.arange(len(scores)) < len(right.logits), scores))


def show(title: str, table: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Print a table of means and, where there are several values, their range."""
    kinds = list(next(iter(table.values())))
    print(f"\n| {title} | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
    for name, row in table.items():
        cells = [f"{np.mean(v):.3f}" + (f" ({min(v):.3f} to {max(v):.3f})" if len(v) > 1 else "") for v in row.values()]
        print(f"| {name} | {' | '.join(cells)} |")


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("reject", __doc__ or "")
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="of one data set")
    parser.add_argument("--data", required=True, metavar="NAME|FOLDER", help="as for tnn-train")
    parser.add_argument("--data-root", type=Path, default="data", help="as for tnn-train")
    parser.add_argument("--outside", type=Path, required=True, metavar="FOLDER", help="images of something else")
    parser.add_argument(
        "--limit", type=positive_int, default=1000, help="images of each kind, twice as many for the test"
    )
    options = parser.parse_args(arguments)
    data = load_data(options.data, root=options.data_root)
    telling: Table = defaultdict(lambda: defaultdict(list))
    rejected: Table = defaultdict(lambda: defaultdict(list))
    for path in tqdm(options.checkpoints, unit="checkpoint", disable=None):
        checkpoint = load_checkpoint(path)
        groups = groups_of(checkpoint, data.test, options.outside, options.limit)
        held_out, density = outputs_of(checkpoint, checkpoint.samples), density_of(checkpoint, data.train)
        for name in ALL_SCORES:
            for kind in [kind for kind in groups if kind != "right"]:
                telling[name][kind].append(auroc(groups["right"], groups[kind], name, density))
            for rule in (check_threshold(calibrate(held_out, name, coverage, density)) for coverage in COVERAGES):
                for kind, outputs in groups.items():
                    share = float(rule.rejects(rule.scores(outputs, density)).mean())
                    rejected[f"{name}, coverage {rule.coverage}"][kind].append(share)
    show("score", telling)
    show("share rejected", rejected)


if __name__ == "__main__":
    sys.exit(run("reject", command))
