"""Relaxed logic heads beside their circuits: `python examples/heads/logic_accuracy.py RUN... --data mnist`.

A logic head is trained relaxed, with gates between 0 and 1, and validated, exported and served as a circuit. For each
run this prints the accuracy of both on the test images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tnn_runtime import UsageError
from tnn_runtime.console import Parser, run
from tnn_runtime.text import a_head
from tnn_train import DataConfig, LogicHead, load_checkpoint, load_data
from tnn_train.model.image_model import Normalize
from tnn_train.run_files import BEST

_AT_ONCE = 500


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("logic_accuracy", __doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders that tnn-train wrote")
    parser.add_argument("--data", default="digits", help="data set that they were trained on")
    parser.add_argument("--data-root", default="data", help="where it lies")
    options = parser.parse_args(arguments)
    test = load_data(DataConfig(options.data, root=options.data_root)).test
    pixels, labels = torch.from_numpy(np.asarray(test.pixels)), torch.from_numpy(test.labels)
    for folder in options.runs:
        checkpoint = load_checkpoint(folder / BEST)
        model, head = checkpoint.model.eval(), checkpoint.model.head
        if not isinstance(head, LogicHead):
            raise UsageError(f"{folder} has {a_head(head.family)}; expected runs with logic heads")
        normalize, right = Normalize(checkpoint.preprocessing), torch.zeros(2, dtype=torch.int64)
        for images, classes in zip(torch.split(pixels, _AT_ONCE), torch.split(labels, _AT_ONCE), strict=True):
            with torch.no_grad():
                both = head.relaxed_and_discrete(model.backbone(normalize(images)))
            right += torch.stack([(logits.argmax(1) == classes).sum() for logits in both])
        relaxed, discrete = (right / len(labels)).tolist()
        print(f"{folder}: relaxed {relaxed:.4f}, discrete {discrete:.4f} on {len(labels):,} test images")


if __name__ == "__main__":
    sys.exit(run("logic_accuracy", command))
