"""The command ``tnn-train``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tnn_runtime.console import Parser
from tnn_train.backbones import BACKBONES, check_backbone
from tnn_train.config import CLASS_MEANS, SCALARS, ModelConfig, TrainConfig, TverskyConfig, choose
from tnn_train.data import DATASETS, load_data
from tnn_train.heads import HEADS
from tnn_train.inits import INITS
from tnn_train.loop import check_run_folder, pick_device, resolve, train
from tnn_train.plots import plot_confusion, plot_curves
from tnn_train.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS

__all__ = ["command"]

_EPILOG = """examples:
  tnn-train --data photos --out runs/photos           a folder with one subfolder of images for each class
  tnn-train --data digits --head linear --out runs/digits-linear
  tnn-train --data mnist --data-root ~/data --limit 2000 --epochs 5 --out runs/mnist
  tnn-train --data photos --out runs/photos --resume  go on after an interruption, with the same options

what it writes:
  OUT/best/          checkpoint of the epoch with the best validation accuracy: give this to tnn-export
  OUT/last/          checkpoint of the last whole epoch, with what --resume needs
  OUT/metrics.jsonl  one line for each epoch;  OUT/results.json  the test set, looked at once, with the best epoch
  OUT/curves.png, OUT/confusion.png"""


class _Option(NamedTuple):
    flag: str
    settings: dict[str, Any]


_TVERSKY = {
    "num_features": _Option("--features", {"help": "size of the feature bank"}),
    "model": _Option("--similarity", {"help": ", ".join(MODELS)}),
    "intersection": _Option("--intersection", {"help": ", ".join(INTERSECTIONS)}),
    "difference": _Option("--difference", {"help": ", ".join(DIFFERENCES)}),
    "alpha": _Option("--alpha", {"help": "initial weight of what only the input has"}),
    "beta": _Option("--beta", {"help": "initial weight of what only the prototype has"}),
    "theta": _Option("--theta", {"help": "initial weight of what is common; offset of the ratio model"}),
    "logit_scale": _Option("--logit-scale", {"help": "initial factor of the ratio model's similarities"}),
    "fixed": _Option(
        "--fixed",
        {"nargs": "+", "metavar": "NAME", "help": f"which of {', '.join(SCALARS)} are not learned"},
    ),
    "normalize": _Option(
        "--normalize",
        {"action": "store_true", "help": "scale embeddings and prototypes to unit norm first"},
    ),
    "membership": _Option("--membership", {"help": ", ".join(MEMBERSHIPS)}),
    "sharpness": _Option("--sharpness", {"help": "of sigmoid membership"}),
    "feature_bank": _Option("--feature-bank", {"help": "learned, or diagonal: the absolute values of the embedding"}),
    "num_prototypes": _Option(
        "--prototypes", {"type": int, "help": "so many prototypes and a linear map; one prototype a class if not given"}
    ),
    "init": _Option("--init", {"help": f"of the feature bank: {', '.join(INITS)}"}),
    "prototype_init": _Option("--prototype-init", {"help": f"such a name, or {CLASS_MEANS}; as --init if not given"}),
    "prototype_gain": _Option("--prototype-gain", {"help": "norm of the prototypes at the start"}),
}
"""The option of each field of `TverskyConfig`; its default is that of the field, and so is its type."""


def _parser() -> Parser:
    recipe, head = TrainConfig(), TverskyConfig()
    parser = Parser(
        "tnn-train", "Train a ResNet with a Tversky head, or its linear baseline, on labelled images.", _EPILOG
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME|FOLDER",
        help=f"{', '.join(DATASETS)}, or a folder: one subfolder a class, or train/ and test/ with such subfolders",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="run folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-root", type=Path, default="data", help="where mnist and cifar10 lie, in torchvision's layout"
    )
    data.add_argument("--download", action="store_true", help="let torchvision download what is missing there")
    data.add_argument(
        "--image-size",
        type=int,
        help="height and width of the model's input in pixels; chosen from the data if not given",
    )
    data.add_argument(
        "--limit", type=int, help="use at most so many images for training and validation, and for the test"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", default="resnet18", help=", ".join(BACKBONES))
    model.add_argument("--stem", default="auto", help="small, imagenet, or auto: by the size of the images")
    model.add_argument("--head", default="tversky", help=", ".join(HEADS))
    tversky = parser.add_argument_group("Tversky head")
    for name, option in _TVERSKY.items():
        default = getattr(head, name)
        settings = {"type": type(default), **option.settings} if type(default) in (int, float) else option.settings
        tversky.add_argument(option.flag, dest=name, default=default, **settings)
    loop = parser.add_argument_group("recipe")
    loop.add_argument("--epochs", type=int, default=recipe.epochs, help="passes over the training set")
    loop.add_argument("--batch-size", type=int, default=recipe.batch_size, help="images a step")
    loop.add_argument(
        "--learning-rate", type=float, default=recipe.learning_rate, help="peak of the one-cycle schedule"
    )
    loop.add_argument("--weight-decay", type=float, default=recipe.weight_decay, help="of AdamW")
    loop.add_argument("--augment", default=recipe.augment, help="none, crop or crop-flip")
    loop.add_argument(
        "--seed", type=int, default=recipe.seed, help="of the split, the weights, the order and the augmentation"
    )
    loop.add_argument("--device", default=recipe.device, help="auto, cpu, cuda or cuda:N")
    loop.add_argument("--threads", type=int, help="CPU threads, torch's choice if not given")
    return parser


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train``."""
    options = _parser().parse_args(arguments)
    check_backbone(options.backbone)
    choose("head", options.head, HEADS)
    recipe = _recipe(options)
    tversky = TverskyConfig(**{name: getattr(options, name) for name in _TVERSKY})
    model = ModelConfig(options.backbone, options.head, stem=options.stem, tversky=tversky)
    pick_device(options.device)
    check_run_folder(options.out, overwrite=options.overwrite, resume=options.resume)
    data = load_data(
        options.data,
        root=options.data_root,
        image_size=options.image_size,
        limit=options.limit,
        seed=options.seed,
        download=options.download,
    )
    size = data.preprocessing.height
    model = resolve(model, data)
    print(
        f"{options.data}: {len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images of "
        f"{len(data.class_names)} classes, {size}x{size}; {options.backbone}, {model.stem} stem, {options.head} head"
    )
    result = train(data, options.out, model, recipe, overwrite=options.overwrite, resume=options.resume)
    plot_curves({options.head: result.history}).savefig(options.out / "curves.png", dpi=120)
    plot_confusion(np.asarray(result.test.confusion), data.class_names, "test set").savefig(
        options.out / "confusion.png", dpi=120
    )
    print(f"test accuracy {result.test.accuracy:.4f} on {len(data.test)} images")
    print(f"next: tnn-export {result.best} -o {options.out}-bundle")


def _recipe(options: argparse.Namespace) -> TrainConfig:
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "augment", "seed", "device", "threads")
    return TrainConfig(**{name: getattr(options, name) for name in names})
