"""The command ``tnn-export slim``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tnn_export.bundle.slim import MODELS, slim_bundle
from tnn_runtime.bundle.manifest import SIGNATURE_FILE
from tnn_runtime.console import Parser, say

__all__ = ["make_parser", "run"]

_EPILOG = """examples:
  tnn-export slim runs/photos-bundle -o runs/photos-slim
  tnn-export slim runs/photos-bundle -o runs/photos-slim --formats onnx

A service needs the manifest, one model, golden.npz and head.npz. The proof and the model card are left out, and with
--formats the models in other formats; tnn-export check needs the whole bundle."""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("tnn-export slim", "Copy a bundle without what serving can do without.", _EPILOG)
    parser.add_argument("bundle", type=Path, help="bundle folder that tnn-export wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="bundle folder to make")
    parser.add_argument(
        "--formats",
        nargs="+",
        metavar="FORMAT",
        help=f"models to copy: {', '.join(MODELS)}; if not given, all that there are",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    return parser


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export slim``."""
    left_out = slim_bundle(options.bundle, options.out, options.formats, overwrite=options.overwrite)
    say(f"left out: {', '.join(left_out) or 'nothing'}")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    say(f"wrote {options.out} ({size:,} bytes)")
    if SIGNATURE_FILE in left_out:
        say(f"the manifest is another one; sign it again: tnn-export sign {options.out} --key KEY.pem")
