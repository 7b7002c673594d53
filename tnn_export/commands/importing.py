"""The command ``tnn-export import``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tnn_export.commands.images import image_files
from tnn_export.importers import IMPORTERS, import_state_dict
from tnn_export.importers.source import REQUIRED
from tnn_runtime.bundle.storage import refuse_existing
from tnn_runtime.console import Parser
from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing, find_class_folders
from tnn_train.model.checkpoint import CONFIG_FILE, save_checkpoint

__all__ = ["make_parser", "run"]

_EPILOG = """examples:
  tnn-export import net.pth --from tversky-nn --backbone resnet18 --images photos -o runs/imported
  tnn-export import net.pth --from verskyt --difference ignorematch --backbone resnet50 --images photos -o runs/imported
  tnn-export import net.pth --from tversky --model contrast --intersection product --difference ignorematch \\
      --backbone resnet18 --images photos -o runs/imported
  tnn-export runs/imported -o runs/imported-bundle

The checkpoint is written only if its logits on the images are those of the layer's own formula; of the images, up to
256 go into it, for the proofs of exports."""

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SAMPLES = 256
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
}


def run(options: argparse.Namespace) -> None:
    """Run ``tnn-export import``."""
    refuse_existing(options.out, CONFIG_FILE, overwrite=options.overwrite)
    preprocessing = _preprocessing(options.image_size, options.mean, options.std)
    files = _images(options.images)
    names = _class_names(options.class_names, options.images)
    classes = [file.relative_to(options.images).parts[0] for file in files]
    known = all(name in names for name in classes)
    checkpoint = import_state_dict(
        options.state_dict,
        options.source,
        backbone=options.backbone,
        preprocessing=preprocessing,
        class_names=names,
        samples=preprocessing.batch(files),
        labels=np.array([names.index(name) for name in classes], np.int64) if known else None,
        stem=options.stem,
        prefix=options.prefix,
        backbone_weights=options.backbone_weights,
        logit_scale=options.logit_scale,
        options={name: value for name in _HELP if (value := getattr(options, name)) is not None},
    )
    save_checkpoint(options.out, checkpoint, overwrite=options.overwrite)
    if metrics := checkpoint.metrics:
        print(
            f"on {metrics['import_samples']} images the logits differ from those of {IMPORTERS[options.source].layer} "
            f"by at most {metrics['import_max_abs_diff']:.1e}"
        )
    print(f"wrote {options.out}")
    print(f"next: tnn-export {options.out} -o BUNDLE")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        "tnn-export import", "Turn a classifier trained with a public Tversky layer into a checkpoint.", _EPILOG
    )
    add = parser.add_argument
    add("state_dict", type=Path, help="file with the classifier's state dict: .pth, .pt or .safetensors")
    add("--from", dest="source", required=True, metavar="LAYER", help=", ".join(IMPORTERS))
    add("--backbone", required=True, metavar="NAME", help="torchvision's name of the classifier, such as resnet18")
    add("--images", type=Path, required=True, metavar="FOLDER", help="folder of images as the classifier is to see")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="checkpoint folder to make")
    add(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="the names of the logits, one a line; if not given, the subfolders of --images in sorted order, as "
        "torchvision's ImageFolder counts them",
    )
    add("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS", help="height and width of the input")
    add("--mean", type=float, nargs="+", help="of the normalisation, one a channel; if not given, ImageNet's")
    add("--std", type=float, nargs="+", help="of the normalisation, one a channel; if not given, ImageNet's")
    add(
        "--stem", default="auto", metavar="STEM", help="of a ResNet: imagenet, small, or auto for what the weights have"
    )
    add("--prefix", metavar="NAME", help="name of the Tversky layer in the classifier, such as fc; if not given, found")
    add("--backbone-weights", type=Path, metavar="FILE", help="state dict of the backbone, for that of a layer alone")
    add("--logit-scale", type=float, default=1.0, metavar="X", help="what the layer's outputs were multiplied by")
    add("--overwrite", action="store_true", help="replace an existing checkpoint")
    form = parser.add_argument_group("how the layer was made, which its state dict does not tell")
    for name, text in _HELP.items():
        takes: dict[str, Any] = {"default": None, "help": f"{text} ({_defaults(name)})"}
        kind = next(type(source.options[name]) for source in IMPORTERS.values() if name in source.options)
        if kind is bool:
            takes |= {"action": "store_true"}
        else:
            takes |= {"type": float if kind is float else str, "metavar": "X" if kind is float else "NAME"}
        form.add_argument(f"--{name.replace('_', '-')}", **takes)
    return parser


def _defaults(name: str) -> str:
    """Say which sources have an option, and what is its default."""
    values = {source: origin.options[name] for source, origin in IMPORTERS.items() if name in origin.options}
    return ", ".join(
        f"{source}: required" if value is REQUIRED else source if value is False else f"{source}: {value}"
        for source, value in values.items()
    )


def _preprocessing(size: list[int], mean: list[float] | None, std: list[float] | None) -> Preprocessing:
    if len(size) > 2:
        raise UsageError(f"--image-size got {len(size)} numbers; expected one, or height and width")
    means, deviations = mean or _IMAGENET["mean"], std or _IMAGENET["std"]
    if len(means) != len(deviations) or len(means) not in (1, 3):
        raise UsageError(
            f"there are {len(means)} means and {len(deviations)} deviations; expected one each for grey images, or "
            "three for RGB: give --mean and --std"
        )
    return Preprocessing(size[0], size[-1], len(means), tuple(means), tuple(deviations))


def _class_names(file: Path | None, folder: Path) -> list[str]:
    if file is None:
        return [path.name for path in find_class_folders(folder)]
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); expected a text file with one class name a line") from error


def _images(folder: Path) -> list[Path]:
    files = image_files(folder)
    return [files[place] for place in np.unique(np.linspace(0, len(files) - 1, _SAMPLES).astype(int))]
