"""The options that every command which exports has."""

from __future__ import annotations

import argparse
import logging

from tnn_export.bundle.options import PROOF_BYTES, PROOF_IMAGES, ExportOptions
from tnn_export.formats import FORMATS
from tnn_export.formats.opsets import OPSETS
from tnn_export.formats.precision import PRECISIONS
from tnn_export.lowering.graph import extra_outputs
from tnn_runtime.answers.reject import ALL_SCORES
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_runtime.console import Parser, positive_int
from tnn_train.heads import HEADS

__all__ = ["add_export_options", "add_score_options", "export_options"]

_logger = logging.getLogger(__name__)

_DEFAULTS = ExportOptions()


def add_export_options(parser: Parser) -> None:
    """Add an option for each field of `ExportOptions`."""
    add, common = parser.add_argument, extra_outputs()
    add(
        "--formats",
        nargs="+",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; if not given, {' and '.join(_DEFAULTS.formats)}, as far as the precision allows",
    )
    add("--precision", default="fp32", help=f"of the backbone: {', '.join(PRECISIONS)}")
    add(
        "--outputs",
        nargs="+",
        default=[],
        metavar="OUTPUT",
        help=f"what to return beside logits and embedding: {', '.join(common)}, and by head "
        + "; ".join(f"{name}: {', '.join(more)}" for name in HEADS if (more := extra_outputs(name)[len(common) :])),
    )
    add("--min-batch", type=int, default=1, metavar="N", help="smallest batch")
    add("--max-batch", type=int, metavar="N", help="largest batch; any if not given")
    add("--opset", type=int, default=20, help=f"of ONNX, {OPSETS[0]} to {OPSETS[-1]}")
    add_score_options(
        parser,
        f"what to reject by: {', '.join(ALL_SCORES)}; if not given, what suits the head ("
        + ", ".join(f"{name}: {head.reject_score}" for name, head in HEADS.items())
        + ")",
    )
    add(
        "--no-exemplars",
        action="store_true",
        help="leave out the small pictures of training images that show what features and prototypes are",
    )


def add_score_options(parser: Parser, what: str) -> None:
    """Add the options of scores, and of the images that they are calibrated on.

    Args:
        parser: The parser.
        what: What images may be rejected by.
    """
    add = parser.add_argument
    add(
        "--reject-score",
        metavar="NAME",
        help=what,
    )
    add(
        "--coverage",
        type=float,
        default=_DEFAULTS.coverage,
        metavar="SHARE",
        help="of images like the real ones of the proof that is not to be rejected",
    )
    add(
        "--proof-images",
        type=positive_int,
        metavar="N",
        help=f"most images that the proof is made on, and the bundle keeps for it; if not given, as many as take "
        f"{PROOF_BYTES >> 20} MiB, and no more than {PROOF_IMAGES:,}",
    )
    add(
        "--temperature",
        type=float,
        metavar="X",
        help="what logits are divided by for scores, 1 for nothing; if not given, what fits the real images of the "
        "proof best, if their classes are known",
    )


def export_options(options: argparse.Namespace) -> ExportOptions:
    """Return what was given for them; a note names what does nothing beside the others.

    Raises:
        UsageError: As `ExportOptions`.
        ExportError: As `ExportOptions`.
    """
    how = ExportOptions(
        _usual_formats(options.precision) if options.formats is None else tuple(options.formats),
        options.precision,
        tuple(options.outputs),
        BatchBounds(options.min_batch, options.max_batch),
        options.opset,
        options.reject_score,
        options.coverage,
        options.proof_images,
        options.temperature,
        not options.no_exemplars,
    )
    if "onnx" not in how.formats and how.opset != _DEFAULTS.opset:
        _logger.warning("--opset does nothing with --formats %s", " ".join(how.formats))
    return how


def _usual_formats(precision: str) -> tuple[str, ...]:
    """Return the formats that are made where none is asked for, without those that cannot have the precision."""
    refused = [name for name in _DEFAULTS.formats if precision in FORMATS[name].refused]
    for name in refused:
        _logger.warning("%s is left out, as it cannot be exported in %s", name, precision)
    return tuple(name for name in _DEFAULTS.formats if name not in refused)
