"""Does the Tversky head cost accuracy? `python examples/accuracy/compare_heads.py digits mnist cifar --data-root data`.

Trains ResNet-18 with several heads from the same seeds with the same budget, and prints how each differs from the
linear one, paired by seed. What a stopped run has finished is not trained again: repeat the command to go on, with
other settings or more seeds, too.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from features import feature_facts
from settings import ARMS, SETTINGS, Setting
from tables import accuracy_table, feature_table

from tnn_runtime.bundle.storage import stands
from tnn_runtime.console import Parser, run
from tnn_runtime.errors import UsageError
from tnn_train import train
from tnn_train.data.images import even_sample
from tnn_train.run_files import BEST, RESULTS_FILE
from tnn_train.training.results import read_run

_LOOKED_THROUGH = 2000
"""How many test images features are looked at through, at most."""


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("accuracy", __doc__ or "")
    parser.add_argument("settings", nargs="+", choices=list(SETTINGS), metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument(
        "--heads", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="HEAD", help="; ".join(ARMS)
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder with MNIST/ and cifar/train, test")
    parser.add_argument("--first-seed", type=int, default=100, help="the seeds are counted from it")
    parser.add_argument("--seeds", type=int, help="how many; by default as many as the setting has")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="folder to write to")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + (options.seeds or max(s.seeds for s in SETTINGS.values())))
    for name in options.settings:
        setting = SETTINGS[name]
        own_seeds = seeds if options.seeds else seeds[: setting.seeds]
        runs = {arm: _train_all(arm, setting, options, options.out / name, own_seeds) for arm in options.heads}
        images = setting.load(options.data_root, own_seeds[0]).test
        images = images.subset(even_sample(len(images), _LOOKED_THROUGH))
        facts = {arm: feature_facts(folders, images, options.out / "cache") for arm, folders in runs.items()}
        for table in (
            accuracy_table(name, runs),
            feature_table(name, {arm: found for arm, found in facts.items() if found}),
        ):
            if table.rows:
                print(f"\n{table.title}\n\n{table.markdown()}", flush=True)


def _train_all(arm: str, setting: Setting, options: Namespace, folder: Path, seeds: range) -> list[Path]:
    """Train one head from all seeds, and return the run folders."""

    def train_one(seed: int, rate: float, name: str) -> Path:
        recipe = dataclasses.replace(setting.recipe, learning_rate=rate, seed=seed + ARMS[arm].other_seeds)
        if setting.backbone is not None:
            recipe = dataclasses.replace(recipe, weights=str(_backbone(options.out / setting.backbone, seed)))
        path = folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{name}"
        if not (path / RESULTS_FILE).exists():
            print(f"== {path}", flush=True)
            train(setting.load(options.data_root, seed), path, ARMS[arm].model, recipe, overwrite=True)
        return path

    rate = setting.recipe.learning_rate
    if setting.rates:
        tried = {rate: train_one(seeds[0], rate, f"{seeds[0]}-rate-{rate:g}") for rate in setting.rates}
        rate = max(tried, key=lambda rate: read_run(tried[rate]).results.val_accuracy)
    return [train_one(seed, rate, str(seed)) for seed in seeds]


def _backbone(folder: Path, seed: int) -> Path:
    """Return the linear checkpoint of a setting and a seed."""
    path = folder / f"linear-{seed}" / BEST
    if not stands(path):
        raise UsageError(f"the backbone {path} is missing; run the setting {folder.name} with the seed {seed} first")
    return path


if __name__ == "__main__":
    sys.exit(run("accuracy", command))
