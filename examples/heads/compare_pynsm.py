"""Similarity matching here and in pynsm: `python examples/heads/compare_pynsm.py --data-root data --limit 6000`.

Needs pynsm (`pip install pynsm==1.0.1`). Both learn an embedding of the same normalised pixels without labels, by
non-negative similarity matching with as many units, in as many epochs and steps, and a linear classifier reads it.
pynsm's classifier is trained on its settled embedding afterwards, for as many epochs again. Optimizer and learning rate
are the best of the same seven for both, on validation and with the first seed. The test set is looked at afterwards,
once for each seed. A third row is the head as it is by default: the gradient of the classifier reaches the circuit.

The heads of this project are then exported, and the right answers of ONNX Runtime are counted; pynsm's circuit is
traced, and the right answers of the trace are counted, and its activities below 0, which a ReLU does not let through.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pynsm.arch import SimilarityMatching
from torch import Tensor, nn
from torch.nn import functional

from tnn_export import ExportOptions, export_bundle
from tnn_runtime import Classifier
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import DataConfig, ImageData, MatchingConfig, ModelConfig, TrainConfig, load_data, train
from tnn_train.data import ImageSet
from tnn_train.model.image_model import Normalize
from tnn_train.training.loop import TrainResult

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
RATES = {"sgd": (1e-3, 1e-2, 1e-1), "adamw": (1e-5, 1e-4, 1e-3, 1e-2)}
CHOICES = [(optimizer, rate) for optimizer, rates in RATES.items() for rate in rates]
BATCH, CLASSIFIER_RATE = 64, 5e-3
FORMS = {
    "ours, without labels": {"objective": 0.1, "end_to_end": False},
    "ours, by default": {},
}


class Pixels:
    """Normalised pixels and classes of the parts of a data set."""

    def __init__(self, data: ImageData) -> None:
        normalize = Normalize(data.preprocessing)

        def of(images: ImageSet) -> tuple[Tensor, Tensor]:
            pixels = torch.from_numpy(images.sample(len(images)))
            return normalize(pixels).flatten(1), torch.from_numpy(images.labels)

        self.train, self.val, self.test = (of(part) for part in (data.train, data.val, data.test))


def batches(count: int, seed: int, epochs: int) -> list[Tensor]:
    """Return which images are in each batch."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    return [rows for order in orders for rows in torch.split(order, BATCH)]


def embedded(circuit: nn.Module, x: Tensor) -> Tensor:
    """Return what pynsm's circuit gives."""
    return torch.cat([circuit(rows).detach() for rows in torch.split(x, 1000)])


def of_pynsm(
    data: Pixels, units: int, choice: tuple[str, float], seed: int, epochs: int
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Train pynsm's circuit, then a linear classifier; return the circuit, and what classifies what it gives."""
    torch.manual_seed(seed)
    x, labels = data.train
    encoder = nn.Linear(x.shape[1], units, bias=False)
    circuit = SimilarityMatching(encoder, units, iteration_projection=nn.ReLU())
    optimizer = OPTIMIZERS[choice[0]](circuit.parameters(), choice[1])
    for rows in batches(len(x), seed, epochs):
        optimizer.zero_grad()
        circuit.loss(x[rows], circuit(x[rows])).backward()
        optimizer.step()
    y, classifier = embedded(circuit, x), nn.Linear(units, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), CLASSIFIER_RATE)
    for rows in batches(len(x), seed, epochs):
        optimizer.zero_grad()
        functional.cross_entropy(classifier(y[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return circuit, classifier


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    return float((logits.argmax(1) == labels).float().mean())


def traced(circuit: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the trace of a circuit on a batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Callable[[Tensor], Tensor] = torch.jit.trace(circuit, x, check_trace=False)  # type: ignore[no-untyped-call]
    return found


def ours(
    data: ImageData, out: Path, units: int, form: dict[str, Any], choice: tuple[str, float], seed: int, epochs: int
) -> TrainResult:
    """Train a head of this project."""
    config = ModelConfig("pixels", "matching", matching=MatchingConfig(units, **form))
    recipe = TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        optimizer=choice[0],
        learning_rate=choice[1],
        augment=(),
        seed=seed,
        exemplars=0,
    )
    return train(data, out, config, recipe, overwrite=True)


def told(values: Sequence[float]) -> str:
    """Return a mean and its extremes."""
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def command(arguments: Sequence[str]) -> None:
    """Compare, and print a row for each."""
    parser = Parser(Path(sys.argv[0]).name, "Compare similarity matching here and in pynsm.")
    parser.add_argument("--data", default="mnist", help="as in tnn-train")
    parser.add_argument("--data-root", default="data", metavar="FOLDER", help="as in tnn-train")
    parser.add_argument("--limit", type=positive_int, help="as in tnn-train")
    parser.add_argument("--units", type=positive_int, default=64, help="of the circuits")
    parser.add_argument("--epochs", type=positive_int, default=5, help="passes over the training images")
    parser.add_argument("--seeds", type=positive_int, default=3, help="how many")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_pynsm"), metavar="FOLDER", help="for the runs")
    options = parser.parse_args(arguments)
    data = load_data(DataConfig(options.data, options.data_root, limit=options.limit))
    pixels = Pixels(data)
    seeds, rows = range(options.seeds), []

    def theirs(choice: tuple[str, float], seed: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        return of_pynsm(pixels, options.units, choice, seed, options.epochs)

    def validated(choice: tuple[str, float]) -> float:
        circuit, classifier = theirs(choice, 0)
        return accuracy(classifier(embedded(circuit, pixels.val[0])), pixels.val[1])

    best = max(CHOICES, key=validated)
    found, of_traces, below = [], [], []
    for seed in seeds:
        circuit, classifier = theirs(best, seed)
        x, labels = pixels.test
        found.append(accuracy(classifier(embedded(circuit, x)), labels))
        trace, whole = traced(circuit, x[:BATCH]), len(x) // BATCH * BATCH
        y = torch.cat([trace(rows).detach() for rows in torch.split(x[:whole], BATCH)])
        of_traces.append(accuracy(classifier(y), labels[:whole]))
        below.append(float((y < 0).float().mean()))
    rows.append(("pynsm", best, told(found), f"{told(of_traces)}, torch.jit.trace, {np.mean(below):.0%} below 0"))
    for name, form in FORMS.items():

        def trained(choice: tuple[str, float], seed: int, form: dict[str, Any] = form, name: str = name) -> TrainResult:
            folder = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            return ours(data, folder, options.units, form, choice, seed, options.epochs)

        best = max(CHOICES, key=lambda choice: max(row["val_accuracy"] for row in trained(choice, 0).history))
        found, served = [], []
        for seed in seeds:
            result = trained(best, seed)
            found.append(result.test.accuracy)
            bundle = result.folder.with_name(f"{result.folder.name}-bundle")
            export_bundle(result.best, bundle, options=ExportOptions(formats=("onnx",)), overwrite=True)
            with Classifier.load(bundle, "cpu") as service:
                answers = service.logits(data.test.sample(len(data.test))).argmax(1)
            served.append(float((answers == data.test.labels).mean()))
        rows.append((name, best, told(found), f"{told(served)}, ONNX Runtime"))
    print("| circuit | optimizer, learning rate | test accuracy | outside of Python's torch |\n|---|---|---|---|")
    for name, (optimizer, rate), eager, exported in rows:
        print(f"| {name} | {optimizer}, {rate:g} | {eager} | {exported} |")


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[0]).name, command))
