"""The convolutional network that torchlogix's quick start shows, on MNIST: `python torchlogix_mnist.py MNIST/raw`.

For comparison with logic heads of this project: 1,000 steps of 128 images with Adam at 0.02. It runs in a Python of its
own that has torchlogix (0.2.2 needs Python 3.12). The folder has the IDX files of MNIST, as they are or packed.
"""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torchlogix.layers import GroupSum, LogicConv2d, LogicDense, OrPooling2d

STEPS, BATCH, RATE = 1000, 128, 0.02


def read(folder: Path, name: str, header: int) -> torch.Tensor:
    """Return the values of an IDX file."""
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in torch.split(images, 500)])
    return float((answers == labels).double().mean())


def main(folder: str, seed: str = "0") -> None:
    """Train the network, and print the accuracy of its relaxed and of its discrete form."""
    torch.manual_seed(int(seed))
    images, test = ((read(Path(folder), f"{part}-images-idx3-ubyte", 16) > 0).float() for part in ("train", "t10k"))
    labels, answers = (read(Path(folder), f"{part}-labels-idx1-ubyte", 8).long() for part in ("train", "t10k"))
    images, test = images.reshape(-1, 1, 28, 28), test.reshape(-1, 1, 28, 28)
    model = torch.nn.Sequential(
        LogicConv2d(in_dim=28, channels=1, num_kernels=16, tree_depth=2, receptive_field_size=3),
        OrPooling2d(kernel_size=2, stride=2, padding=0),
        torch.nn.Flatten(),
        LogicDense(16 * 13 * 13, 4000),
        LogicDense(4000, 4000),
        GroupSum(k=10, tau=8),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    started = time.perf_counter()
    for step in range(STEPS):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images))
        rows = order[step % (len(images) // BATCH) * BATCH :][:BATCH]
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.perf_counter() - started
    found = {form: accuracy(model.train(form == "relaxed"), test, answers) for form in ("relaxed", "discrete")}
    print(f"seed {seed}: relaxed {found['relaxed']:.4f}, discrete {found['discrete']:.4f}, {seconds:.0f} s of training")


if __name__ == "__main__":
    main(*sys.argv[1:])
