"""Learning vector quantisation on the digits of scikit-learn: this project beside prosemble.

Both get the same training and test images, and the same epochs, batch size, optimizer, learning rate and sizes. The
epoch is chosen on the validation images by this project alone. prosemble runs in a Python of its own, which has it:

    python -m venv prosemble-env && prosemble-env/bin/pip install 'prosemble[jax]==2.4.0'
    python examples/heads/compare_prosemble.py prosemble-env/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tnn_train import DataConfig, ImageData, LvqConfig, ModelConfig, TrainConfig, load_data, train

HIDDEN, LATENT = 64, 32

FORMS = {
    "GLVQ": LvqConfig(),
    "GMLVQ": LvqConfig(relevances="matrix"),
    "LVQMLN": LvqConfig(latent=LATENT, hidden=(HIDDEN,), activation="relu"),
}

THEIRS = """
import json, sys
import numpy as np
from prosemble import models

folder, settings, name, extra, seeds = sys.argv[1], *map(json.loads, sys.argv[2:])
x, y, test, labels = (np.load(f"{folder}/{part}.npy") for part in ("x", "y", "test", "labels"))
for seed in range(seeds):
    model = getattr(models, name)(random_seed=seed, optimizer="adam", **settings, **extra)
    model.fit(x, y)
    print(float((np.asarray(model.predict(test)) == labels).mean()))
"""


def main() -> None:
    """Train both, and print a table of test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="a Python that has prosemble")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = load_data(DataConfig("digits", image_size=(8, 8)))
    budget = {"max_iter": options.epochs, "batch_size": 32, "lr": 0.01}
    lines = ["| | prosemble | this project |", "|---|---|---|"]
    for name, form in FORMS.items():
        theirs = run_prosemble(options.python, data, budget, name, options.seeds)
        ours = [train_ours(data, form, options.epochs, seed) for seed in range(options.seeds)]
        lines.append(f"| {name} | {shown(theirs)} | {shown(ours)} |")
    print("\n".join(lines))


def train_ours(data: ImageData, form: LvqConfig, epochs: int, seed: int) -> float:
    """Return the test accuracy of this project."""
    recipe = TrainConfig(epochs=epochs, batch_size=32, learning_rate=0.01, augment=(), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        result = train(data, Path(folder) / "run", ModelConfig("pixels", "lvq", lvq=form), recipe)
    return result.test.accuracy


def run_prosemble(python: Path, data: ImageData, budget: dict[str, Any], name: str, seeds: int) -> list[float]:
    """Return the test accuracies of prosemble, one a seed."""
    mean, std = data.preprocessing.mean[0], data.preprocessing.std[0]
    extra = {"hidden_sizes": [HIDDEN], "latent_dim": LATENT, "activation": "relu"} if name == "LVQMLN" else {}
    with tempfile.TemporaryDirectory() as folder:
        for part, images in (("x", data.train), ("test", data.test)):
            pixels = np.stack([images.decoded(index) for index in range(len(images))]).reshape(len(images), -1)
            np.save(f"{folder}/{part}.npy", ((pixels / 255 - mean) / std).astype(np.float32))
        np.save(f"{folder}/y.npy", data.train.labels)
        np.save(f"{folder}/labels.npy", data.test.labels)
        arguments = [json.dumps(value) for value in (budget, name, extra, seeds)]
        done = subprocess.run([python, "-c", THEIRS, folder, *arguments], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def shown(accuracies: list[float]) -> str:
    """Return the mean, and the values that it is of."""
    return f"{np.mean(accuracies):.4f} ({', '.join(f'{value:.4f}' for value in accuracies)})"


if __name__ == "__main__":
    main()
