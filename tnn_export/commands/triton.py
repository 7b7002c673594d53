"""The command ``tnn-export triton``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tnn_export.triton.options import KINDS, TritonOptions
from tnn_runtime.console import Parser, positive_int, say

__all__ = ["make_parser", "run"]

_DEFAULTS = TritonOptions()
_EPILOG = """examples:
  tnn-export triton runs/photos-bundle -o repository --name photos
  tnn-export triton runs/photos-bundle -o repository --name photos --version 2 --overwrite
  tnn-export triton runs/photos-bundle -o repository --name photos-gpu --device cuda --instances 2
  tritonserver --model-repository repository --disable-auto-complete-config

Clients call the model NAME with image files, and get labels, scores, logits and more. NAME_decode, NAME_onnx and
NAME_rank are its steps. Models of other bundles in the repository stay as they are."""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("tnn-export triton", "Write a bundle as models of NVIDIA Triton Inference Server.", _EPILOG)
    add = parser.add_argument
    add("bundle", type=Path, help="bundle folder that tnn-export wrote")
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="REPOSITORY",
        help="model repository to write to, made if need be; it may have models of other bundles",
    )
    add("--name", help="what clients call the model; if not given, the name of the bundle's folder")
    add("--version", type=positive_int, default=1, metavar="N", help="version of the models")
    add("--device", default=_DEFAULTS.device, help=f"where the network runs: {', '.join(KINDS)}")
    add(
        "--instances",
        type=positive_int,
        default=_DEFAULTS.instances,
        metavar="N",
        help="how many batches of the network run at once; on CUDA, on each GPU",
    )
    add("--threads", type=positive_int, default=_DEFAULTS.threads, metavar="N", help="CPU threads of each of them")
    add(
        "--decoders",
        type=positive_int,
        default=_DEFAULTS.decoders,
        metavar="N",
        help="how many requests are decoded at once",
    )
    add(
        "--max-batch-size",
        type=positive_int,
        metavar="N",
        help="images a batch, at most; if not given, 64, or what the bundle takes if that is less",
    )
    add(
        "--max-queue-delay-ms",
        type=float,
        default=_DEFAULTS.max_queue_delay_ms,
        metavar="X",
        help="how long a request waits for others to share a batch with, in milliseconds",
    )
    add(
        "--top-k",
        type=positive_int,
        default=_DEFAULTS.top_k,
        metavar="K",
        help="how many classes labels and scores have; all if there are fewer",
    )
    add(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="refuse a bundle that is not signed by the owner of this Ed25519 key",
    )
    add("--overwrite", action="store_true", help="replace existing models of this name")
    return parser


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export triton``."""
    from tnn_export.triton.repository import export_triton

    how = TritonOptions(
        options.device,
        options.instances,
        options.threads,
        options.decoders,
        options.max_batch_size,
        options.max_queue_delay_ms,
        options.top_k,
    )
    names = export_triton(
        options.bundle,
        options.out,
        name=options.name,
        version=options.version,
        options=how,
        public_key=options.public_key,
        overwrite=options.overwrite,
    )
    say(f"wrote the models {', '.join(names)} into {options.out}")
    say(f"next: tritonserver --model-repository {options.out} --disable-auto-complete-config")
