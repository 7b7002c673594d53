"""The command ``tnn-train prototypes``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.bundle.storage import write_bytes
from tnn_runtime.console import Parser, say
from tnn_runtime.errors import UsageError
from tnn_train.commands.reporting import sample_of
from tnn_train.data import load_data
from tnn_train.data.config import recorded_data
from tnn_train.model.checkpoint import load_checkpoint
from tnn_train.report.learned_images import draw, look_at_images
from tnn_train.run_files import BEST
from tnn_train.training.loop import pick_device

__all__ = ["command", "make_parser"]

_EPILOG = """examples:
  tnn-train --data digits --tversky.domain image --tversky.num-features 20 --out runs/digits
  tnn-train prototypes runs/digits -o learned.png

Each learned image stands before the training images whose embeddings are nearest to its own."""


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train prototypes``."""
    options = make_parser().parse_args(arguments)
    check_file(options.out, "--out", overwrite=options.overwrite)
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"--out is {options.out}; expected a name that ends in .png")
    best = options.run / BEST
    checkpoint = load_checkpoint(best if best.is_dir() else options.run)
    if checkpoint.model.images is None:
        raise UsageError(
            f"{options.run} has no learned images; train with --tversky.domain image, or see its report for the images "
            "nearest to each prototype"
        )
    data = load_data(recorded_data(checkpoint.training, options.run))
    sample, indices = sample_of(checkpoint, data, pick_device("cpu"))
    captions = [data.class_names[label] for label in sample.labels]
    found = look_at_images(checkpoint.model, sample)
    picture = draw(found, lambda place: data.train.decoded(int(indices[place])), captions)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    write_bytes(options.out, buffer.getbuffer())
    say(f"wrote {options.out}: {len(found)} learned images")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("tnn-train prototypes", "Draw the images that prototypes and features were learned as.", _EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder that tnn-train has made, or a checkpoint")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.png", help="picture to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE.png")
    return parser
