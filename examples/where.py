"""Whether explanations point at the object: `python examples/where.py --out runs/where`.

Draws images with one object, a disk, a square or a cross in red or blue, within one quadrant, and grey clutter in the
others. Trains a small ResNet from scratch with each head (He et al. 2016, section 4.2, 14 layers), exports it with feature maps, and explains the class that it
answers for each test image. Printed is which share of the mass of a map lies in the quadrant of the object: of the map
of the feature that adds most to the logit, and of the map of the whole logit. The mass of a map is what is above 0 in
it; a map that says nothing has a quarter of it in each quadrant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from tnn_train import ModelConfig, TrainConfig, train
from tnn_train.model.backbones import BACKBONES

SIDE, HALF = 32, 16
SHAPES = ("disk", "square", "cross")
COLOURS = {"red": (230, 40, 40), "blue": (50, 70, 230)}
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HEADS = ("tversky", "linear")
BACKBONE = "resnet14"
WIDTHS, BLOCKS = (16, 32, 64), 2
PER_CLASS, VALIDATION_PER_CLASS, TEST = 150, 10, 200
ENOUGH = 0.8


class SmallResNet(nn.Module):
    """The ResNet for images of 32x32 pixels: three stages, the last of which has a map of 8x8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        blocks = []
        for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            stride = 1 if before == width else 2
            project = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            blocks.append(BasicBlock(before, width, stride, None if stride == 1 else project))
            blocks += [BasicBlock(width, width) for _ in range(BLOCKS - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images ``[N, 3, 32, 32]``."""
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


BACKBONES[BACKBONE] = SmallResNet


def draw(draws: np.random.Generator, label: str) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image of a class, and the row and the column of the quadrant that its object lies in."""
    image = Image.fromarray(draws.integers(70, 130, (SIDE, SIDE, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    row, column = draws.integers(0, 2, 2).tolist()
    for other in [(r, c) for r in (0, 1) for c in (0, 1) if (r, c) != (row, column)]:
        for _ in range(draws.integers(1, 4)):
            (top, left), (bottom, right) = np.sort(draws.integers(1, HALF - 1, (2, 2)), axis=0) + HALF * np.array(other)
            grey = (int(draws.integers(150, 230)),) * 3
            pen.line((left, top, right, bottom), fill=grey, width=int(draws.integers(1, 3)))
    colour, _, shape = label.partition(" ")
    size = int(draws.integers(9, 13))
    top, left = draws.integers(1, HALF - size, 2) + HALF * np.array((row, column))
    box, fill = (left, top, left + size - 1, top + size - 1), COLOURS[colour]
    if shape == "disk":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    else:
        pen.line((*box[:2], *box[2:]), fill=fill, width=3)
        pen.line((box[0], box[3], box[2], box[1]), fill=fill, width=3)
    return image, (row, column)


def draw_all(folder: Path, seed: int, per_class: int, count: int) -> tuple[list[Path], list[tuple[int, int]]]:
    """Draw a folder of images that is split, and return the test images with the quadrants of their objects."""
    draws = np.random.default_rng(seed)
    paths, quadrants = [], []
    for part, number in (("train", per_class), ("val", VALIDATION_PER_CLASS), ("test", -(-count // len(CLASSES)))):
        for place in range(number):
            for label in CLASSES:
                path = folder / part / label / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image, quadrant = draw(draws, label)
                image.save(path)
                if part == "test":
                    paths.append(path)
                    quadrants.append(quadrant)
    return paths[:count], quadrants[:count]


def share(places: NDArray[np.float32], quadrant: tuple[int, int]) -> float:
    """Return which share of the mass of a map ``[h, w]`` lies in a quadrant; of none, a quarter."""
    mass = np.maximum(places.astype(np.float64), 0)
    height, width = (size // 2 for size in mass.shape)
    row, column = quadrant
    inside = mass[row * height : (row + 1) * height, column * width : (column + 1) * width].sum()
    return float(inside / mass.sum()) if mass.any() else 0.25


def strongest(explanation: Explanation) -> NDArray[np.float32]:
    """Return the map of the feature that adds most to the logit."""
    assert explanation.maps is not None
    added = [sum(part.signed for part in feature.parts) for feature in explanation.features]
    return explanation.maps.features[int(np.argmax(added))]


def row_of(head: str, what: str, shares: Sequence[float]) -> str:
    """Return a row of the table: the mean with its 95% interval, and the share of images above `ENOUGH`, with its."""
    mean, error = float(np.mean(shares)), float(np.std(shares, ddof=1)) / len(shares) ** 0.5
    half = float(t.ppf(0.975, len(shares) - 1)) * error
    above = sum(one > ENOUGH for one in shares)
    low, high = binomtest(above, len(shares)).proportion_ci(0.95)
    return (
        f"| {head} | {what} | {mean:.1%} ({mean - half:.1%} to {mean + half:.1%}) | "
        f"{above / len(shares):.1%} ({low:.1%} to {high:.1%}) |"
    )


def command(arguments: Sequence[str]) -> None:
    """Draw, train, export, explain and print the table."""
    parser = Parser(Path(sys.argv[0]).name, "Measure whether explanations point at the object.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for images, runs and bundles")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, help="the heads to train")
    parser.add_argument("--epochs", type=positive_int, default=8, help="passes over the training images")
    parser.add_argument("--per-class", type=positive_int, default=PER_CLASS, metavar="N", help="training images")
    parser.add_argument("--images", type=positive_int, default=TEST, metavar="N", help="test images in all")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the training")
    options = parser.parse_args(arguments)
    paths, quadrants = draw_all(options.out / "images", options.seed, options.per_class, options.images)
    rows = []
    for head in options.heads:
        recipe = TrainConfig(epochs=options.epochs, augment=(), seed=options.seed)
        found = train(options.out / "images", options.out / head, ModelConfig(BACKBONE, head), recipe)
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
            rows.append(row_of(head, what, [share(*pair) for pair in zip(places, quadrants, strict=True)]))
    print(f"\n| head | map of | mass in the quadrant | images with more than {ENOUGH:.0%} |\n|---|---|---|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[0]).name, command, sys.argv[1:]))
