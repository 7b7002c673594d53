"""How strong the fit of a last layer should be: `python examples/heads/parts_sparsity.py RUN... --data digits`.

For each run with a parts head, and each strength, this fits the last layer again on the training images, and prints the
accuracy and the cross-entropy on the validation images, and the weights.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tnn_runtime import UsageError
from tnn_runtime.console import Parser, run
from tnn_runtime.text import a_head
from tnn_train import DataConfig, load_checkpoint, load_data
from tnn_train.data.loader import evaluation_loader
from tnn_train.heads import PartsHead
from tnn_train.model.image_model import Normalize
from tnn_train.run_files import BEST

_AT_ONCE = 64
_STRENGTHS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2)


@torch.no_grad()
def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("parts_sparsity", __doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders that tnn-train wrote")
    parser.add_argument("--data", default="digits", help="data set that they were trained on")
    parser.add_argument("--data-root", default="data", help="where it lies")
    options = parser.parse_args(arguments)
    data = load_data(DataConfig(options.data, root=options.data_root))
    print("run  sparsity  accuracy  cross-entropy  smallest  largest  not 0")
    for folder in options.runs:
        checkpoint = load_checkpoint(folder / BEST)
        model, head = checkpoint.model.eval(), checkpoint.model.head
        if not isinstance(head, PartsHead):
            raise UsageError(f"{folder} has {a_head(head.family)}; expected runs with parts heads")
        normalize = Normalize(checkpoint.preprocessing)
        sets: list[tuple[Tensor, Tensor]] = []
        for images in (data.train, data.val):
            batches = evaluation_loader(images, _AT_ONCE)
            rows, labels = zip(*((head.similarities(model.backbone(normalize(x))), y) for x, y in batches), strict=True)
            sets.append((torch.cat(rows), torch.cat(labels)))
        (train, classes), (val, expected) = sets
        for strength in _STRENGTHS:
            head.config = dataclasses.replace(head.config, sparsity=strength)
            layer = head.fitted(train, classes)
            logits, weight = layer(val.double()), layer.weight
            accuracy = float((logits.argmax(1) == expected).double().mean())
            print(
                f"{folder}  {strength:g}  {accuracy:.4f}  {float(functional.cross_entropy(logits, expected)):.4f}  "
                f"{float(weight.min()):+.2f}  {float(weight.max()):+.2f}  {float((weight != 0).double().mean()):.1%}"
            )


if __name__ == "__main__":
    sys.exit(run("parts_sparsity", command))
