"""The command ``tnn-export import``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tnn_export.importers import IMPORTERS, LINEAR, SOURCES, import_state_dict
from tnn_export.importers.linear import LINEAR_OPTIONS
from tnn_export.importers.prosemble import PROSEMBLE, PROSEMBLE_OPTIONS
from tnn_export.importers.source import REQUIRED
from tnn_runtime.bundle.outputs import refuse_among_images
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser, say
from tnn_train.model.checkpoint import CHECKPOINT, save_checkpoint
from tnn_train.model.inputs import add_file_options, make_preprocessing, read_class_names
from tnn_train.model.samples import open_folder, read_samples
from tnn_train.model.unfolding import describe_unfolding

__all__ = ["make_parser", "run"]

_EPILOG = """examples:
  tnn-export import net.pth --from tversky-nn --backbone resnet18 --images photos -o runs/imported
  tnn-export import net.pth --from verskyt --backbone resnet50 --images photos -o runs/imported
  tnn-export import net.pth --from tversky --model contrast --intersection product --difference ignorematch \\
      --backbone resnet18 --images photos -o runs/imported
  tnn-export import net.pth --from linear --backbone resnet18 --images photos -o runs/imported
  tnn-export import gmlvq.npz --from prosemble --backbone pixels --image-size 8 --mean 0 --std 1 --images photos \\
      -o runs/imported
  tnn-export runs/imported -o runs/imported-bundle

The checkpoint is written only if its logits on the images are those of the layer's own formula; of the images, up to
256 go into it, for the proofs of exports."""

_HELP = {
    "model": "similarity model",
    "intersection": "measure of the common features",
    "difference": "measure of the distinctive features",
    "alpha": "weight of what only the input has",
    "beta": "weight of what only the prototype has",
    "theta": "constant of the ratio",
    "normalize": "inputs and prototypes were scaled to unit norm",
    "normalize_features": "the feature bank was scaled to unit norm",
    "normalize_prototypes": "inputs and prototypes were scaled to unit norm",
    "code": "the attributes of the classes: classes, hierarchy or a CSV file",
    "channels": "how RGB pixels became a vector: first, channel by channel, or last, pixel by pixel",
}

_OPTIONS = {
    **{name: source.options for name, source in IMPORTERS.items()},
    LINEAR: LINEAR_OPTIONS,
    PROSEMBLE: PROSEMBLE_OPTIONS,
}


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export import``."""
    refuse_existing(options.out, CHECKPOINT, overwrite=options.overwrite)
    refuse_among_images(options.out, options.images)
    preprocessing = make_preprocessing(
        options.image_size, options.mean, options.std, options.fit, options.background, options.backbone
    )
    images = open_folder(options.images)
    names = read_class_names(options.class_names, images)
    samples, labels = read_samples(images, preprocessing, names)
    checkpoint = import_state_dict(
        options.state_dict,
        options.source,
        backbone=options.backbone,
        preprocessing=preprocessing,
        class_names=names,
        samples=samples,
        labels=labels,
        stem=options.stem or "auto",
        prefix=options.prefix,
        backbone_weights=options.backbone_weights,
        logit_scale=options.logit_scale,
        options={name: value for name in _HELP if (value := getattr(options, name)) is not None},
    )
    save_checkpoint(options.out, checkpoint, overwrite=options.overwrite)
    if options.source == LINEAR:
        say(*describe_unfolding(checkpoint))
    elif metrics := checkpoint.metrics:
        layer = IMPORTERS[options.source].layer if options.source in IMPORTERS else options.source
        say(
            f"on {metrics['import_samples']} images the logits differ from those of {layer} "
            f"by at most {metrics['import_max_abs_diff']:.1e}"
        )
    say(f"wrote {options.out}")
    say(f"next: tnn-export {options.out} -o BUNDLE")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "tnn-export import",
        "Turn a classifier trained with a public Tversky layer, a linear one, or prosemble, into a checkpoint.",
        _EPILOG,
    )
    add = parser.add_argument
    add("state_dict", type=Path, help="file with the classifier's state dict: .pth, .pt or .safetensors; or .npz")
    add("--from", dest="source", required=True, metavar="LAYER", help=", ".join(SOURCES))
    add("--backbone", required=True, metavar="NAME", help="torchvision's name of it, such as resnet18; or pixels")
    add("--images", type=Path, required=True, metavar="FOLDER", help="folder of images as the classifier is to see")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="checkpoint folder to make")
    add_file_options(parser, "layer")
    add("--logit-scale", type=float, default=1.0, metavar="X", help="what the layer's outputs were multiplied by")
    add("--overwrite", action="store_true", help="replace an existing checkpoint")
    form = parser.add_argument_group("how the layer was made, which its state dict does not tell")
    for name, text in _HELP.items():
        takes: dict[str, Any] = {"default": None, "help": f"{text} ({_defaults(name)})"}
        kind = next(type(options[name]) for options in _OPTIONS.values() if name in options)
        if kind is bool:
            takes |= {"action": "store_true"}
        else:
            takes |= {"type": float if kind is float else str, "metavar": "X" if kind is float else "NAME"}
        form.add_argument(f"--{name.replace('_', '-')}", **takes)
    return parser


def _defaults(name: str) -> str:
    """Say which sources have an option, and what is its default."""
    values = {source: options[name] for source, options in _OPTIONS.items() if name in options}
    return ", ".join(
        f"{source}: required"
        if value is REQUIRED
        else source
        if value is False or value is None
        else f"{source}: {value}"
        for source, value in values.items()
    )
