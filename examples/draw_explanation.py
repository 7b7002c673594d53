"""Draw why an image got its class and not another one: ``python examples/draw_explanation.py BUNDLE IMAGE -o why.png``.

``tnn-runtime explain`` does the same for many images, also as a page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tnn_runtime import Classifier, Manifest
from tnn_runtime.console import Parser, run
from tnn_runtime.drawing import draw


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("draw_explanation", __doc__ or "")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("-o", "--out", type=Path, default=Path("explanation.png"), help="picture to write")
    options = parser.parse_args(arguments)
    with Classifier.load(options.bundle, "cpu") as classifier:
        manifest, _ = Manifest.read(options.bundle)
        (explanations,) = classifier.explain([options.image], maps=manifest.feature_maps is not None)
    draw(explanations, manifest.preprocessing(options.image)).save(options.out)
    print(f"wrote {options.out}: {explanations[0].summary}")


if __name__ == "__main__":
    sys.exit(run("draw_explanation", command))
