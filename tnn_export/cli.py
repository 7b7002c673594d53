"""The command ``tnn-export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tnn_export.bundle import FORMATS, PRECISIONS, export_bundle
from tnn_runtime.console import Parser
from tnn_runtime.errors import InputError
from tnn_runtime.manifest import MANIFEST_FILE
from tnn_runtime.preprocess import find_images
from tnn_runtime.storage import refuse_existing
from tnn_train.checkpoint import load_checkpoint

__all__ = ["command"]

_EPILOG = """examples:
  tnn-export runs/photos/best -o runs/photos-bundle
  tnn-export runs/photos/best -o runs/photos-bundle --images holiday/ --overwrite

The bundle is written only if every artifact, read back from disk, gives the logits of eager PyTorch on real images at
batch sizes 1, 7 and 64. A difference may be explained by a feature on the edge of its membership; such samples are
proven one by one and counted apart."""


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-export``."""
    parser = Parser(
        "tnn-export", "Export a checkpoint to a bundle that runs without torch, and prove it equal.", _EPILOG
    )
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint folder that tnn-train wrote, such as runs/photos/best"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="bundle folder to make")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--precision", default="fp32", help=", ".join(PRECISIONS))
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of images for the proof; if not given, the validation images in the checkpoint",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    options = parser.parse_args(arguments)
    refuse_existing(options.out, MANIFEST_FILE, overwrite=options.overwrite)
    checkpoint = load_checkpoint(options.checkpoint)
    images = None
    if options.images is not None:
        files = find_images(options.images) if options.images.is_dir() else []
        if not files:
            raise InputError(f"{options.images} has no files; expected a folder of images")
        images = checkpoint.preprocessing.batch(files)
    report = export_bundle(
        checkpoint, options.out, options.formats, options.precision, images=images, overwrite=options.overwrite
    )
    print(report.table())
    print(f"wrote {options.out}")
    if "onnx" in options.formats:
        print(f"next: tnn-runtime predict {options.out} IMAGE...")
