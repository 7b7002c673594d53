"""Draw why an image got its class: ``python examples/draw_explanation.py BUNDLE IMAGE -o explanation.png``.

Left the image with its best classes; right the parts of the logit of the best one, and the features with the largest
parts. What speaks for the class goes to the right, and what speaks against it to the left. With a Tversky head that is
what the image shares with the prototype of the class, and what only one of them has; with a linear head it is what
values of the embedding add to the logit and take from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tnn_runtime import Classifier, Explanation, Manifest, Part, Prediction, UsageError
from tnn_runtime.console import Parser, run

PARTS = {
    "common": ("shared with the prototype", "#2a7f62"),
    "input_only": ("only in the image", "#c8553d"),
    "prototype_only": ("only in the prototype", "#e8a33d"),
    "supporting": ("for the class", "#2a7f62"),
    "opposing": ("against the class", "#c8553d"),
    "bias": ("bias", "#777777"),
}
"""What parts are called in the picture, and their colours."""
INK, FAINT = "#222222", "#dddddd"
SHORT = 24


def short(text: str) -> str:
    """Return a text that fits on its line."""
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"


def number(value: float, sign: str = "") -> str:
    """Return three digits, with the minus sign that the axes have."""
    return f"{value:{sign}.3g}".replace("-", "\N{MINUS SIGN}")


def percent(score: float) -> str:
    """Return a share with one digit, or that it is less than that shows."""
    return f"{score:.1%}" if score >= 0.0005 else "<0.1%"


def draw_image(axes: Axes, image: Image.Image, ranked: Sequence[Prediction]) -> None:
    """Draw the image, and its best classes below it."""
    axes.imshow(np.asarray(image.convert("RGB")))
    axes.set_axis_off()
    axes.set_anchor("N")
    axes.set_title(f"{short(ranked[0].label)}  {percent(ranked[0].score)}", fontsize=16, fontweight="bold", color=INK)
    others = "\n".join(f"{short(other.label)}  {percent(other.score)}" for other in ranked[1:])
    axes.annotate(
        others, (0.5, 0), (0, -8), "axes fraction", "offset points", ha="center", va="top", color=INK, linespacing=1.5
    )


def style(part: Part) -> tuple[str, str]:
    """Return what a part is called, and its colour; those of families that are not known here follow from the sign."""
    return PARTS.get(part.name, (part.name.replace("_", " "), PARTS["supporting" if part.sign > 0 else "opposing"][1]))


def clean(axes: Axes, title: str, rows: Sequence[str]) -> None:
    """Leave only what is needed to read a chart of horizontal bars, first row on top."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(0, color=INK, linewidth=0.8)


def draw_parts(axes: Axes, explanation: Explanation) -> None:
    """Draw the parts, and the bias if there is one, as bars: for the class to the right, against it to the left."""
    bias = [Part("bias", 1, explanation.bias)] if explanation.bias else []
    parts = [*explanation.parts, *bias]
    for row, part in enumerate(parts):
        bars = axes.barh(row, part.signed, color=style(part)[1], height=0.6)
        (label,) = axes.bar_label(bars, [number(part.signed, "+")], padding=4, color=INK)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.margins(x=0.22)
    title = f"Why “{short(explanation.label)}”: logit {number(explanation.logit)}"
    clean(axes, title, [style(part)[0] for part in parts])


def draw_features(axes: Axes, explanation: Explanation) -> None:
    """Draw what each of the strongest features adds to the parts, one bar at the end of the other."""
    for row, feature in enumerate(explanation.features):
        ends = {True: 0.0, False: 0.0}
        for part in feature.parts:
            axes.barh(row, part.signed, left=ends[part.signed > 0], color=style(part)[1], height=0.6)
            ends[part.signed > 0] += part.signed
    axes.use_sticky_edges = False
    axes.margins(x=0.08)
    clean(axes, "Strongest features", [short(feature.title) for feature in explanation.features])


def draw(image: Image.Image, ranked: Sequence[Prediction], explanation: Explanation) -> Figure:
    """Return the picture."""
    count = len(explanation.features)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(11, 3.4 + 0.36 * max(count, 4)), dpi=150, layout=layout)
    axes = figure.subplot_mosaic(
        [["image", "parts"], ["image", "features"]], width_ratios=(1, 1.1), height_ratios=(3, max(3, 0.8 * count))
    )
    draw_image(axes["image"], image, ranked)
    draw_parts(axes["parts"], explanation)
    draw_features(axes["features"], explanation)
    return figure


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("draw_explanation", __doc__ or "")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("-o", "--out", type=Path, default=Path("explanation.png"), help="picture to write, .png")
    parser.add_argument("--features", type=int, default=5, help="features to draw, 1 to 20")
    options = parser.parse_args(arguments)
    if not 1 <= options.features <= 20 or options.out.suffix != ".png":
        raise UsageError(f"got --features {options.features} and -o {options.out}; expected 1 to 20, and a .png file")
    with Classifier.load(options.bundle, "cpu") as classifier:
        (ranked,) = classifier.predict([options.image], top_k=3)
        ((explanation,),) = classifier.explain([options.image], top_k=1, num_features=options.features)
    image = Manifest.read(options.bundle)[0].preprocessing.picture(options.image)
    draw(image, ranked, explanation).savefig(options.out)
    print(f"wrote {options.out}: {explanation.label}, {percent(ranked[0].score)}\n{explanation.summary}")


if __name__ == "__main__":
    sys.exit(run("draw_explanation", command))
