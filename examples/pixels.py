"""Whether maps point at the pixels that matter: `python examples/pixels.py --image-size 28 --out runs/pixels`.

Trains a ResNet with two stages from scratch with each head: a place of its map stands for 2x2 pixels, and sees 13x13.
Then it removes the tenth of the pixels where the map of the margin is strongest, and random tenths, as `tnn-train audit
--measures pixels` does, and prints how often the former makes the lead over the runner-up drop more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scipy.stats import binomtest
from where import SmallResNet

from tnn_runtime.console import Parser, positive_int, run
from tnn_train import ModelConfig, TrainConfig, load_checkpoint, load_data, train
from tnn_train.audit.pixels import Margins, margin_maps, relevance_of, remove_pixels
from tnn_train.audit.subject import Subject
from tnn_train.data.images import even_sample
from tnn_train.model.backbones import BACKBONES

HEADS = ("tversky", "linear")
BACKBONE = "two-stage-resnet"
WIDTHS = (32, 64)
COLUMNS = ("head", "test accuracy", "map", "beats a random tenth", "scattered tenth", "drop, map", "drop, random")


def row_of(head: str, accuracy: float, subject: Subject) -> str:
    """Return a row of the table, with a 95% interval over the images, of Clopper and Pearson."""
    maps = margin_maps(subject)
    height, width = subject.images.shape[1:3]
    found = remove_pixels(relevance_of(maps, height, width), Margins(subject).drop)
    count = len(subject.images)
    low, high = binomtest(round(found["win"] * count), count).proportion_ci(0.95)
    cells = [
        head,
        f"{accuracy:.1%}",
        "x".join(map(str, maps.shape[1:])),
        f"{found['win']:.1%} ({low:.1%} to {high:.1%})",
        f"{found['scattered_win']:.1%}",
        f"{found['drop']:.2f}",
        f"{found['random_drop']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def command(arguments: Sequence[str]) -> None:
    """Train, remove pixels, and print the table."""
    parser = Parser(Path(sys.argv[0]).name, "Measure whether maps point at the pixels that matter.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the runs")
    parser.add_argument("--data", default="digits", help="as in tnn-train")
    parser.add_argument("--data-root", default="data", metavar="FOLDER", help="as in tnn-train")
    parser.add_argument("--image-size", type=positive_int, help="as in tnn-train")
    parser.add_argument("--limit", type=positive_int, help="as in tnn-train")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, help="the heads to train")
    parser.add_argument("--epochs", type=positive_int, default=8, help="passes over the training images")
    parser.add_argument("--images", type=positive_int, default=300, metavar="N", help="test images")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    options = parser.parse_args(arguments)
    BACKBONES[BACKBONE] = partial(SmallResNet, 1, WIDTHS)
    data = load_data(options.data, root=options.data_root, image_size=options.image_size, limit=options.limit)
    some = data.test.subset(even_sample(len(data.test), options.images))
    recipe = TrainConfig(epochs=options.epochs, batch_size=64, learning_rate=5e-3, seed=options.seed, exemplars=0)
    print(f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", sep="\n")
    for head in options.heads:
        found = train(data, options.out / head, ModelConfig(BACKBONE, head), recipe)
        subject = Subject(load_checkpoint(found.best), some.sample(len(some)), some.labels)
        print(row_of(head, found.test.accuracy, subject))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[0]).name, command, sys.argv[1:]))
