"""Are prototypes central and stable? `python examples/audit_heads.py --data mnist --weights runs/cifar/best`.

Freezes the backbone of a checkpoint, trains heads on its embeddings from several seeds, and audits them side by side: a
linear layer, a head of class means by cosine, the default Tversky head, and the same from a random start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.explain import EXPLAINERS
from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_train.commands.audit import audit_runs
from tnn_train.commands.sweep import command as sweep
from tnn_train.heads import HEADS, Head
from tnn_train.heads.base import PrototypeView
from tnn_train.heads.class_means import class_means
from tnn_train.heads.precision import full_precision, precise

SECTIONS = ("prototypes", "seeds")
RATES = ("0.01", "0.1")
SHORTEST = 1e-6


class CosineHead(Head):
    """Logits are the cosines of the embedding to a prototype of each class, times a learned scale."""

    family = "cosine"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_classes, in_features))
        self.scale = nn.Parameter(torch.tensor(10.0))

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: Any) -> Self:
        """Build the head, which has no options."""
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``."""
        with full_precision(x):
            rows = (functional.normalize(precise(rows), dim=1, eps=SHORTEST) for rows in (x, self.prototypes))
            x, prototypes = rows
            return precise(self.scale) * x @ prototypes.mT

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Move the prototypes to the means of the embeddings of their classes."""
        self.prototypes.copy_(class_means(batches, *2 * (len(self.prototypes),)).to(self.prototypes.device))

    def arrays(self) -> dict[str, Tensor]:
        """Return the prototypes and the scale."""
        return {"prototypes": self.prototypes, "scale": self.scale}

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return the prototypes beside the embeddings."""
        return PrototypeView(x, self.prototypes, self(x), torch.arange(len(self.prototypes)))


class CosineExplainer(AdditiveExplainer):
    """Explains ``logit = scale * sum of x * prototype`` over the values of vectors of length 1."""

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays of the head."""
        return {"prototypes": "CD", "scale": ""}

    def prepare(self, embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the embeddings, of length 1."""
        return _unit(embeddings)

    def terms(self, values: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each value adds to the logits of K classes, ``[K, D]``."""
        return np.asarray(self.arrays["scale"] * _unit(self.arrays["prototypes"][classes]) * values)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST))


HEADS[CosineHead.family] = CosineHead
EXPLAINERS[CosineHead.family] = CosineExplainer


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("audit_heads", __doc__ or "")
    add = parser.add_argument
    add("--data", required=True, metavar="NAME|FOLDER", help="as for tnn-train")
    add("--data-root", default="data", help="as for tnn-train")
    add("--weights", required=True, metavar="CHECKPOINT", help="whose backbone to freeze")
    add("--limit", type=positive_int, default=2000, help="as for tnn-train")
    add("--image-size", type=positive_int, default=16, help="as for tnn-train")
    add("--epochs", type=positive_int, default=20, help="passes over the embeddings")
    add("--seeds", type=positive_int, default=3, help="how many")
    add("--images", type=positive_int, default=300, help="test images to audit on")
    add("--out", type=Path, default=Path("runs/audit_heads"), help="folder to write to")
    options = parser.parse_args(arguments)
    common = {
        "--data": options.data,
        "--data-root": options.data_root,
        "--weights": options.weights,
        "--limit": options.limit,
        "--image-size": options.image_size,
        "--epochs": options.epochs,
        "--seeds": options.seeds,
        "--embedding-cache": options.out / "cache",
        "--threads": 1,
        "--batch-size": 128,
    }
    words = [str(word) for pair in common.items() for word in pair] + ["--freeze-backbone", "--learning-rates", *RATES]
    arms = {"default": ["--heads", "linear", "cosine", "tversky"], "random": ["--heads", "tversky"]}
    arms["random"] += ["--tversky.start", "random"]
    for name, heads in arms.items():
        if not (options.out / name / "compare.html").exists():
            sweep([*words, *heads, "--out", str(options.out / name), "--resume"])
    folders = [path for name in arms for path in sorted((options.out / name).glob("*-[0-9]*")) if path.is_dir()]
    print(audit_runs(folders, SECTIONS, images=options.images).table())


if __name__ == "__main__":
    sys.exit(run("audit_heads", command))
