"""Whether explanations point at the object: `python examples/where.py --out runs/where`.

Draws images with one object, a disk, a square or a cross in red or blue, within one quadrant, and grey clutter in the
others. Trains a small ResNet (He et al. 2016, section 4.2) from scratch with each head, exports it with feature maps,
and explains the class that it answers for each test image. Printed is which share of the mass of a map lies in the
quadrant of the object, and how often its largest value does: of the map of the feature that adds most to the logit, and
of the map of the whole logit. The mass of a map is what is above 0 in it; a map that says nothing has a quarter of it
in each quadrant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.stats import binomtest, t
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from tnn_export import ExportOptions, export_bundle
from tnn_runtime import Classifier, Explanation
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.errors import UsageError
from tnn_train import ModelConfig, TrainConfig, train
from tnn_train.model.backbones import BACKBONES

SHAPES = ("disk", "square", "cross")
COLOURS = {"red": (230, 40, 40), "blue": (50, 70, 230)}
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HEADS = ("tversky", "linear")
BACKBONE = "small-resnet"
WIDTHS = (16, 32, 64)
PER_CLASS, VALIDATION_PER_CLASS, TEST = 100, 10, 200
STRIDE = 4
ENOUGH = 0.8


class SmallResNet(nn.Module):
    """The ResNet for small images: with three stages, a place of its map stands for 4x4 pixels.

    Args:
        blocks: Residual blocks a stage.
        widths: Channels of each stage; each but the first one halves the map.
    """

    def __init__(self, blocks: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers = []
        for before, width in zip((widths[0], *widths), widths, strict=False):
            stride = 1 if before == width else 2
            project = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            layers.append(BasicBlock(before, width, stride, None if stride == 1 else project))
            layers += [BasicBlock(width, width) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images ``[N, 3, H, W]``."""
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def draw(draws: np.random.Generator, label: str, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image of a class, and the row and the column of the quadrant that its object lies in."""
    half = side // 2
    image = Image.fromarray(draws.integers(70, 130, (side, side, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    row, column = draws.integers(0, 2, 2).tolist()
    for other in [(r, c) for r in (0, 1) for c in (0, 1) if (r, c) != (row, column)]:
        for _ in range(draws.integers(1, 4)):
            (top, left), (bottom, right) = np.sort(draws.integers(1, half - 1, (2, 2)), axis=0) + half * np.array(other)
            grey = (int(draws.integers(150, 230)),) * 3
            pen.line((left, top, right, bottom), fill=grey, width=int(draws.integers(1, side // 10)))
    colour, _, shape = label.partition(" ")
    size = int(draws.integers(half * 9 // 16, half * 13 // 16))
    top, left = draws.integers(1, half - size, 2) + half * np.array((row, column))
    box, fill = (left, top, left + size - 1, top + size - 1), COLOURS[colour]
    if shape == "disk":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    else:
        pen.line((*box[:2], *box[2:]), fill=fill, width=side // 10)
        pen.line((box[0], box[3], box[2], box[1]), fill=fill, width=side // 10)
    return image, (row, column)


def draw_all(
    folder: Path, seed: int, side: int, per_class: int, count: int
) -> tuple[list[Path], list[tuple[int, int]]]:
    """Draw a folder of images that is split, and return the test images with the quadrants of their objects."""
    draws = np.random.default_rng(seed)
    paths, quadrants = [], []
    for part, number in (("train", per_class), ("val", VALIDATION_PER_CLASS), ("test", -(-count // len(CLASSES)))):
        for place in range(number):
            for label in CLASSES:
                path = folder / part / label / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image, quadrant = draw(draws, label, side)
                image.save(path)
                if part == "test":
                    paths.append(path)
                    quadrants.append(quadrant)
    return paths[:count], quadrants[:count]


def inside(places: NDArray[np.float32], quadrant: tuple[int, int]) -> tuple[float, bool]:
    """Return which share of the mass of a map ``[h, w]`` lies in a quadrant, and whether its largest value does."""
    mass = np.maximum(places.astype(np.float64), 0)
    height, width = (size // 2 for size in mass.shape)
    row, column = quadrant
    part = mass[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return (float(part.sum() / mass.sum()), part.max() == mass.max()) if mass.any() else (0.25, False)


def strongest(explanation: Explanation) -> NDArray[np.float32]:
    """Return the map of the feature that adds most to the logit."""
    assert explanation.maps is not None
    added = [sum(part.signed for part in feature.parts) for feature in explanation.features]
    return np.asarray(explanation.maps.features[int(np.argmax(added))])


def row_of(head: str, what: str, found: Sequence[tuple[float, bool]]) -> str:
    """Return a row of the table, with 95% intervals over the images: of Student's t, and of Clopper and Pearson."""
    shares, hits = np.array([share for share, _ in found]), [is_hit for _, is_hit in found]
    low, high = t.interval(0.95, len(found) - 1, shares.mean(), shares.std(ddof=1) / len(found) ** 0.5)
    cells = [f"{shares.mean():.1%} ({low:.1%} to {high:.1%})"]
    for count in (int((shares > ENOUGH).sum()), sum(hits)):
        low, high = binomtest(count, len(found)).proportion_ci(0.95)
        cells.append(f"{count / len(found):.1%} ({low:.1%} to {high:.1%})")
    return f"| {' | '.join([head, what, *cells])} |"


def command(arguments: Sequence[str]) -> None:
    """Draw, train, export, explain and print the table."""
    parser = Parser(Path(sys.argv[0]).name, "Measure whether explanations point at the object.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for images, runs and bundles")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, help="the heads to train")
    parser.add_argument("--epochs", type=positive_int, default=8, help="passes over the training images")
    parser.add_argument("--per-class", type=positive_int, default=PER_CLASS, metavar="N", help="training images")
    parser.add_argument("--images", type=positive_int, default=TEST, metavar="N", help="test images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the training")
    parser.add_argument("--side", type=positive_int, default=64, help="pixels of an image, a multiple of 8 from 32 on")
    parser.add_argument("--blocks", type=positive_int, default=2, help="residual blocks a stage")
    options = parser.parse_args(arguments)
    if options.side % (2 * STRIDE) or options.side < 8 * STRIDE or options.images < 2:
        raise UsageError(
            f"got --side {options.side} and --images {options.images}; expected a multiple of {2 * STRIDE} from "
            f"{8 * STRIDE} on, so that quadrants have places of their own, and at least 2 images"
        )
    BACKBONES[BACKBONE] = partial(SmallResNet, options.blocks)
    folder = options.out / "images"
    paths, quadrants = draw_all(folder, options.seed, options.side, options.per_class, options.images)
    rows = []
    for head in options.heads:
        recipe = TrainConfig(epochs=options.epochs, augment=(), seed=options.seed)
        found = train(folder, options.out / head, ModelConfig(BACKBONE, head), recipe)
        bundle = options.out / f"{head}-bundle"
        report = export_bundle(
            found.best, bundle, options=ExportOptions(("onnx", "torchscript"), outputs=("feature_maps",))
        )
        print(*report.table().split("\n"), f"{head}: test accuracy {found.test.accuracy:.1%}", sep="\n")
        with Classifier.load(bundle, "cpu") as classifier:
            explained = [one for one, *_ in classifier.explain(paths, top_k=1, num_features=8, maps=True)]
        for what, places in (
            ("strongest feature", [strongest(one) for one in explained]),
            ("logit", [one.maps.logit for one in explained if one.maps is not None]),
        ):
            rows.append(row_of(head, what, [inside(*pair) for pair in zip(places, quadrants, strict=True)]))
    print(f"\n| head | map of | mass in the quadrant | images with more than {ENOUGH:.0%} | largest value in it |")
    print(f"|{'---|' * 5}")
    print(*rows, sep="\n")


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[0]).name, command, sys.argv[1:]))
