"""Prototypes and features learned as images, beside learned vectors: `python examples/image_domain.py OUT`.

Each form of the head is trained from the same seeds, with the same small backbone and for as many epochs. Then the cost
of a step is measured: steps of both domains take turns, in processor time of one thread, beside a control.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.console import Parser, run, say
from tnn_train import ImageData, ModelConfig, TrainConfig, TverskyConfig, load_checkpoint, load_data, train
from tnn_train.commands.reporting import sample_of
from tnn_train.data import DataConfig
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.image_model import LearningModel, build_model
from tnn_train.report.learned_images import draw, look_at_images
from tnn_train.training.image_start import start_images
from tnn_train.training.loop import TrainResult

IMAGE = TverskyConfig(num_features=20, domain="image")
FORMS = {
    "embedding": TverskyConfig(num_features=20),
    "image": IMAGE,
    "embedding, start random": TverskyConfig(num_features=20, start="random", thresholds=True),
    "image, start noise": dataclasses.replace(IMAGE, image_start="noise"),
}
RECIPE = TrainConfig(batch_size=64, learning_rate=5e-3, device="cpu", threads=1)
ROUNDS = 40


class SmallNet(nn.Module):
    """Four convolutions with batch norm, and the mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 16, stride=1), *_block(16, 32, stride=2), *_block(32, 64, stride=2), *_block(64, 64, stride=1)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images ``[N, 3, H, W]``."""
        logits: Tensor = self.fc(self.avgpool(self.features(x)).flatten(1))
        return logits


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def main(arguments: Sequence[str]) -> None:
    """Train, measure, and print a line for each result."""
    parser = Parser("image_domain.py", "Compare what prototypes and features are learned as.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--data", default="digits", help="digits, mnist or a folder of images")
    parser.add_argument("--data-root", metavar="FOLDER", help="where mnist is")
    parser.add_argument("--limit", type=int, help="use at most so many images")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM", help="some of them")
    options = parser.parse_args(arguments)
    BACKBONES["small"] = SmallNet
    config = DataConfig(options.data, limit=options.limit, image_size=16)
    data = load_data(config if options.data_root is None else dataclasses.replace(config, root=options.data_root))
    options.out.mkdir(parents=True)
    found: dict[str, list[float]] = {name: [] for name in options.forms}
    for seed in range(options.seeds):
        for name in options.forms:
            recipe = dataclasses.replace(RECIPE, epochs=options.epochs, seed=seed)
            folder = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            result = train(data, folder, ModelConfig("small", tversky=FORMS[name]), recipe)
            found[name].append(result.test.accuracy)
            say(f"{name}, seed {seed}: test accuracy {result.test.accuracy:.4f}{_looked_at(result, data, seed)}")
    cost = step_cost(data.preprocessing.channels)
    say(
        f"processor time of a step, image domain / embedding domain: {cost['image']:.2f}; control {cost['control']:.2f}"
    )
    (options.out / "results.json").write_text(json.dumps({"accuracy": found, "cost": cost}, indent=1))


def _looked_at(result: TrainResult, data: ImageData, seed: int) -> str:
    """Draw the learned images of a run beside the nearest training images, and return how far they have come."""
    checkpoint = load_checkpoint(result.best)
    if checkpoint.model.images is None:
        return ""
    sample, indices = sample_of(checkpoint, data, torch.device("cpu"))
    found = look_at_images(checkpoint.model, sample)
    captions = [data.class_names[label] for label in sample.labels]
    picture = draw(found, lambda place: data.train.decoded(int(indices[place])), captions)
    picture.save(result.folder.with_suffix(".png"))
    begun = build_model(checkpoint.config)
    start_images(begun, data, seed)
    assert begun.images is not None
    now, start = checkpoint.model.images.pixels(), begun.images.pixels()
    moved = torch.cat([(now[name] - start[name]).abs().flatten() for name in now]).mean()
    same = [data.class_names[sample.labels[one.nearest[0]]] == one.title.rpartition(", ")[2] for one in found[:10]]
    return f"; pixels have moved by {moved:.3f}; {sum(same)} of 10 prototypes are nearest to an image of their class"


def step_cost(channels: int) -> dict[str, float]:
    """Return ratios of the processor time of a step, forward and backward, to that in the embedding domain."""
    forms = {"embedding": FORMS["embedding, start random"], "image": IMAGE, "control": FORMS["embedding, start random"]}
    models = {}
    for name, form in forms.items():
        size = (16, 16) if form.domain == "image" else ()
        model = build_model(ModelConfig("small", in_channels=channels, image_size=size, tversky=form))
        models[name] = (LearningModel(model) if size else model).train()
    x, y = torch.randn(RECIPE.batch_size, channels, 16, 16), torch.arange(RECIPE.batch_size) % 10
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            started = time.process_time()
            torch.autograd.backward(functional.cross_entropy(model(x), y))
            seconds[name].append(time.process_time() - started)
    base = np.array(seconds["embedding"][2:])
    return {name: float(np.median(np.array(seconds[name][2:]) / base)) for name in ("image", "control")}


if __name__ == "__main__":
    sys.exit(run("image_domain.py", main))
