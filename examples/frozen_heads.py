"""Heads on a frozen backbone: `python examples/frozen_heads.py runs/cifar/best --data mnist --data-root data`.

The backbone of a checkpoint turns every image into an embedding once. Then each head is trained on the embeddings from
several seeds. The learning rate of each head is the best of the same four on validation, with the first seed; the test
set is looked at afterwards, once for each seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from tnn_runtime.console import Parser, run
from tnn_runtime.errors import UsageError
from tnn_train import LinearHead, TverskyConfig, TverskyHead, load_checkpoint, load_data
from tnn_train.data import ImageSet
from tnn_train.heads.class_means import class_means
from tnn_train.heads.tversky.config import CLASS_MEANS
from tnn_train.training.embeddings import EmbeddingSet, embed
from tnn_train.training.loop import pick_device

HIDDEN = 64
HEADS: dict[str, TverskyConfig | str] = {
    "linear": "linear",
    f"two layers, {HIDDEN} hidden units": "two layers",
    "tversky": TverskyConfig(),
    "tversky, class means": TverskyConfig(prototype_init=CLASS_MEANS),
    "tversky, 256 features, class means": TverskyConfig(num_features=256, prototype_init=CLASS_MEANS),
    "tversky, 256 features, class means, ignorematch": TverskyConfig(
        num_features=256, prototype_init=CLASS_MEANS, difference="ignorematch"
    ),
    "tversky, 256 features, class means, ignorematch, sigmoid": TverskyConfig(
        num_features=256, prototype_init=CLASS_MEANS, difference="ignorematch", membership="sigmoid"
    ),
    "tversky, 256 features, class means, alpha = beta = 0": TverskyConfig(
        num_features=256, prototype_init=CLASS_MEANS, alpha=0.0, beta=0.0, fixed=("alpha", "beta")
    ),
    "tversky, 256 features, class means, ratio": TverskyConfig(
        num_features=256, prototype_init=CLASS_MEANS, model="ratio"
    ),
}
LEARNING_RATES = (1e-3, 1e-2, 1e-1, 1.0)
BATCH_SIZE = 128
WEIGHT_DECAY = 0.05
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t distribution with 1 to 9 degrees of freedom."""


def build(form: TverskyConfig | str, data: EmbeddingSet, classes: int) -> nn.Module:
    """Return a new head."""
    size = data.embeddings.shape[1]
    if form == "linear":
        return LinearHead(size, classes)
    if form == "two layers":
        return nn.Sequential(nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    assert isinstance(form, TverskyConfig)
    head = TverskyHead(size, classes, form)
    if form.prototype_init == CLASS_MEANS:
        with torch.no_grad():
            head.prototypes.copy_(
                class_means([(data.embeddings, torch.from_numpy(data.labels))], classes, len(head.prototypes))
            )
    return head


def fit(form: TverskyConfig | str, data: EmbeddingSet, classes: int, rate: float, epochs: int, seed: int) -> nn.Module:
    """Return a head trained on embeddings with AdamW and a one-cycle learning rate."""
    torch.manual_seed(seed)
    head = build(form, data, classes)
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    steps = len(data) // BATCH_SIZE
    labels = torch.from_numpy(data.labels)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(data))[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            optimizer.zero_grad()
            functional.cross_entropy(head(data.embeddings[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head


def accuracy(head: nn.Module, data: EmbeddingSet) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        return float((head(data.embeddings).argmax(1).numpy() == data.labels).mean())


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("frozen_heads", __doc__ or "")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="whose backbone to freeze")
    parser.add_argument("--data", required=True, metavar="NAME|FOLDER", help="as for tnn-train")
    parser.add_argument("--data-root", type=Path, default="data", help="as for tnn-train")
    parser.add_argument("--limit", type=int, help="as for tnn-train")
    parser.add_argument("--seeds", type=int, default=5, help="how many, 2 to 10")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the embeddings")
    parser.add_argument("--device", default="auto", help="for the embeddings")
    parser.add_argument("--out", type=Path, default=Path("runs/frozen_heads"), help="folder to write to")
    options = parser.parse_args(arguments)
    if not 2 <= options.seeds <= len(T_975) + 1 or options.epochs < 1:
        raise UsageError(
            f"got --seeds {options.seeds} and --epochs {options.epochs}; expected --seeds of 2 to {len(T_975) + 1} and "
            "--epochs of at least 1"
        )
    device = pick_device(options.device)
    checkpoint = load_checkpoint(options.checkpoint)
    data = load_data(options.data, root=options.data_root, limit=options.limit)
    if len(data.train) < BATCH_SIZE:
        raise UsageError(f"got {len(data.train)} training images; expected at least a batch of {BATCH_SIZE}")
    train, val, test = (
        embed(
            checkpoint.model.backbone,
            ImageSet(images.sources, images.labels, checkpoint.preprocessing),
            device,
            options.out / "cache",
        )
        for images in (data.train, data.val, data.test)
    )
    torch.set_num_threads(1)
    classes, results = len(data.class_names), {}
    print(f"{len(train)} training, {len(val)} validation and {len(test)} test embeddings, {options.seeds} seeds")
    print("| head | learning rate | parameters | validation accuracy | test accuracy, mean and 95% interval |")
    print("|---|---|---|---|---|")
    for name, form in tqdm(HEADS.items(), unit="head", disable=None):
        first = {rate: fit(form, train, classes, rate, options.epochs, seed=0) for rate in LEARNING_RATES}
        rate = max(LEARNING_RATES, key=lambda value: accuracy(first[value], val))
        heads = [first[rate]]
        heads += [fit(form, train, classes, rate, options.epochs, seed) for seed in range(1, options.seeds)]
        accuracies = [accuracy(head, test) for head in heads]
        mean, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
        # Equal values do not tell the spread.
        half = f"± {T_975[options.seeds - 2] * spread / options.seeds**0.5:.4f}" if spread else "(-)"
        validation = float(np.mean([accuracy(head, val) for head in heads]))
        size = sum(parameter.numel() for parameter in heads[0].parameters())
        results[name] = {"learning_rate": rate, "parameters": size, "validation": validation, "test": accuracies}
        tqdm.write(f"| {name} | {rate:g} | {size} | {validation:.4f} | {mean:.4f} {half} |", file=sys.stdout)
    (options.out / "frozen_heads.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out / 'frozen_heads.json'}")


if __name__ == "__main__":
    sys.exit(run("frozen_heads", command))
