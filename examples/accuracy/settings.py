"""What is trained: data sets with a recipe each, and heads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from two_layers import TwoLayers

from tnn_train import ImageData, LvqConfig, ModelConfig, PartsConfig, TrainConfig, TverskyConfig, load_data

__all__ = ["ARMS", "SETTINGS", "Arm", "Setting"]


@dataclass(frozen=True)
class Setting:
    """A data set and a budget, the same for every head.

    Args:
        source: The data set; one that has no name is a folder in the data folder.
        recipe: How all heads are trained, but for the seed.
        seeds: How many seeds.
        image_size: Height and width of the images in pixels.
        limit: How many images for training and validation, of which a fifth is for validation; ``None`` for all.
        few: Whether to keep the whole test set nevertheless.
        backbone: The setting whose linear run with the same seed has the backbone, which is then frozen; ``None`` to
            train it.
        rates: Learning rates, out of which each head gets the best on validation with the first seed.
    """

    source: str
    recipe: TrainConfig
    seeds: int = 5
    image_size: int = 16
    limit: int | None = None
    few: bool = False
    backbone: str | None = None
    rates: tuple[float, ...] = ()

    def load(self, root: Path, seed: int) -> ImageData:
        """Return the images; ``root`` is the data folder, and the seed decides which are left out or held out."""
        source = self.source if self.source in ("digits", "mnist") else str(root / self.source)
        data = load_data(source, root=root, image_size=self.image_size, limit=self.limit, seed=seed)
        if not self.few:
            return data
        return dataclasses.replace(data, test=load_data(source, root=root, image_size=self.image_size).test)


@dataclass(frozen=True)
class Arm:
    """A head to be compared with the linear one.

    Args:
        model: Its configuration.
        other_seeds: What is added to each seed.
    """

    model: ModelConfig
    other_seeds: int = 0


_FROZEN = TrainConfig(epochs=20, batch_size=128, threads=1, device="cpu", freeze_backbone=True)
_RATES = (1e-3, 1e-2, 1e-1, 1.0)


def _recipe(epochs: int, *augment: str) -> TrainConfig:
    return TrainConfig(epochs=epochs, batch_size=64, threads=1, precision="bf16", device="cpu", augment=augment)


SETTINGS = {
    "digits": Setting("digits", _recipe(8, "crop"), seeds=10),
    "mnist": Setting("mnist", _recipe(3, "crop"), limit=10_000),
    "cifar": Setting("cifar", _recipe(5, "crop", "flip"), limit=8_000),
    "cifar-long": Setting("cifar", _recipe(10, "crop", "flip"), seeds=3, limit=8_000),
    "cifar-to-mnist": Setting("mnist", _FROZEN, limit=10_000, backbone="cifar", rates=_RATES),
    "mnist-to-digits": Setting("digits", _FROZEN, backbone="mnist", rates=_RATES),
    **{
        f"cifar-to-mnist-{count}": Setting(
            "mnist", _FROZEN, limit=round(count * 10 / 0.8), few=True, backbone="cifar", rates=_RATES
        )
        for count in (5, 20, 100)
    },
}
"""The settings by name; the last ones have so many training images a class."""

ARMS = {
    "linear": Arm(ModelConfig(head="linear")),
    "linear, other seeds": Arm(ModelConfig(head="linear"), other_seeds=1000),
    "two layers": Arm(ModelConfig(head=TwoLayers.family)),
    "tversky": Arm(ModelConfig()),
    "tversky, one attribute a class": Arm(ModelConfig(tversky=TverskyConfig(start="linear", code="classes"))),
    "lvq": Arm(ModelConfig(head="lvq")),
    "lvq, glvq": Arm(ModelConfig(head="lvq", lvq=LvqConfig(loss="glvq"))),
    "lvq, matrix": Arm(ModelConfig(head="lvq", lvq=LvqConfig(relevances="matrix", rank=32))),
    "parts": Arm(ModelConfig(head="parts")),
    "parts, pipnet": Arm(ModelConfig(head="parts", parts=PartsConfig(kind="pipnet"))),
    "matching": Arm(ModelConfig(head="matching")),
    "logic": Arm(ModelConfig(head="logic")),
    "tversky, random start": Arm(ModelConfig(tversky=TverskyConfig(start="random"))),
}
"""The heads by name; the first one is what the others are compared with."""
