"""Which score tells what to reject: `python examples/reject.py runs/mnist/best --data mnist --outside cifar/test`.

Classifies the test images of a data set, and images that do not belong to it: those of a folder, noise, and test images
that are inverted or turned. Prints how well each score tells these, and the wrong answers, from the right ones (area
under the ROC curve: 0.5 is chance, 1 is perfect), and what shares are rejected at the thresholds that the validation
images in the checkpoint give. Of several checkpoints it prints the mean, and the smallest and the largest.
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

from tnn_runtime.answers.reject import SCORES, calibrate, check_threshold
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.errors import UsageError
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, load_checkpoint, load_data
from tnn_train.data import ImageSet
from tnn_train.data.images import even_sample
from tnn_train.model.image_model import Normalize

BATCH_SIZE = 64
COVERAGES = (0.95, 0.99)
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
Table = dict[str, dict[str, list[float]]]


def logits_of(checkpoint: Checkpoint, images: Pixels) -> Logits:
    """Return the logits ``[N, C]`` of images ``[N, H, W, C]``."""
    normalize = Normalize(checkpoint.preprocessing)
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(images), BATCH_SIZE)
        return np.concatenate([checkpoint.model(normalize(batch)).numpy() for batch in batches])


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


def groups_of(checkpoint: Checkpoint, test: ImageSet, folder: Path, count: int) -> dict[str, Logits]:
    """Return the logits of right and wrong answers on test images, and those of strangers."""
    images = ImageSet(test.sources, test.labels, checkpoint.preprocessing).sample(2 * count)
    logits = logits_of(checkpoint, images)
    is_right = logits.argmax(1) == test.labels[even_sample(len(test), 2 * count)]
    if is_right.all() or not is_right.any():
        raise UsageError(f"all answers to {len(images)} test images are alike, right or wrong; give a larger --limit")
    outside = strangers(images, folder, checkpoint.preprocessing, count)
    return {
        "right": logits[is_right],
        "wrong": logits[~is_right],
        **{kind: logits_of(checkpoint, group) for kind, group in outside.items()},
    }


def auroc(right: Logits, others: Logits, score: str) -> float:
    """Return how often a right answer has a larger score than one of the others."""
    scores = np.concatenate([SCORES[score](right), SCORES[score](others)])
    return float(roc_auc_score(np.arange(len(scores)) < len(right), scores))


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
    test = load_data(options.data, root=options.data_root).test
    telling: Table = defaultdict(lambda: defaultdict(list))
    rejected: Table = defaultdict(lambda: defaultdict(list))
    for path in tqdm(options.checkpoints, unit="checkpoint", disable=None):
        checkpoint = load_checkpoint(path)
        groups = groups_of(checkpoint, test, options.outside, options.limit)
        held_out = logits_of(checkpoint, checkpoint.samples)
        for name in SCORES:
            for kind in [kind for kind in groups if kind != "right"]:
                telling[name][kind].append(auroc(groups["right"], groups[kind], name))
            for rule in (check_threshold(calibrate(held_out, name, coverage)) for coverage in COVERAGES):
                for kind, logits in groups.items():
                    share = float(rule.rejects(rule.scores(logits)).mean())
                    rejected[f"{name}, coverage {rule.coverage}"][kind].append(share)
    show("score", telling)
    show("share rejected", rejected)


if __name__ == "__main__":
    sys.exit(run("reject", command))
