"""One Tversky projection learns XOR, which no linear layer can: `python examples/xor.py --seeds 100`.

Two prototypes, one for each class, are compared with a point over a bank of learned features. For every seed one
projection learns the four points, and another one learns noisy samples of them and is tested on fresh ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tnn_runtime.console import Parser, positive_int, run
from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS

FORM = TverskyConfig(difference="ignorematch", membership="sigmoid", sharpness=2.0, alpha=0.1, beta=0.1)
POINTS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
CLASSES = torch.tensor([0, 1, 1, 0])
STEPS = 500
LEARNING_RATE = 0.05
TRAINING_SAMPLES, TEST_SAMPLES = 512, 4096


def learn(form: TverskyConfig, x: Tensor, y: Tensor, seed: int) -> TverskyHead:
    """Return a projection trained on points ``x [N, 2]`` and classes ``y [N]``."""
    torch.manual_seed(seed)
    head = TverskyHead(2, 2, form)
    optimizer = torch.optim.Adam(head.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(head(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return head


def accuracy(head: TverskyHead, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers."""
    with torch.no_grad():
        return float((head(x).argmax(1) == y).double().mean())


def draw(count: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points with normal noise of standard deviation ``noise`` around the four points."""
    corner = torch.randint(4, (count,), generator=generator)
    return POINTS[corner] + noise * torch.randn(count, 2, generator=generator), CLASSES[corner]


def bayes_rate(noise: float) -> float:
    """Return the best possible accuracy: that of the quadrants, which err where one coordinate changes its sign."""
    crosses = 0.5 * math.erfc(1 / (noise * math.sqrt(2)))
    return 1 - 2 * crosses * (1 - crosses)


def plot(head: TverskyHead, samples: tuple[Tensor, Tensor], path: Path) -> None:
    """Draw the decision boundary, the prototypes and the features of a projection."""
    from matplotlib.figure import Figure

    reach = 2.2
    axis = torch.linspace(-reach, reach, 300)
    with torch.no_grad():
        logits = head(torch.cartesian_prod(axis, axis))
    margin = (logits[:, 1] - logits[:, 0]).reshape(300, 300).T.numpy()
    prototypes = head.prototypes.detach().numpy()
    assert head.feature_bank is not None
    bank = head.feature_bank.detach().numpy()
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axes = figure.subplots()
    limit = np.abs(margin).max()
    axes.imshow(margin, extent=(-reach, reach, -reach, reach), origin="lower", cmap="RdBu", vmin=-limit, vmax=limit)
    axes.contour(axis.numpy(), axis.numpy(), margin, levels=[0.0], colors="black", linewidths=1.5)
    x, y = (tensor.numpy() for tensor in samples)
    for label, colour in enumerate(("#b2182b", "#2166ac")):
        points = x[y == label]
        axes.scatter(points[:, 0], points[:, 1], 8, colour, edgecolor="white", linewidth=0.3, label=f"class {label}")
        place = prototypes[label] * min(1.0, 0.9 * reach / np.abs(prototypes[label]).max())
        axes.scatter(place[:1], place[1:], 260, colour, marker="*", edgecolor="black", label=f"prototype {label}")
    for number, feature in enumerate(bank / np.linalg.norm(bank, axis=1).max()):
        axes.annotate("", feature.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": "#444444"})
        if number == 0:
            axes.plot([], [], color="#444444", label="features")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), title="XOR by one Tversky projection")
    axes.legend(loc="upper center", ncols=3, fontsize=8, framealpha=0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def table(seeds: range) -> None:
    """Print how many seeds each form and init solves, as Markdown."""
    print("| model | intersection | difference | membership | " + " | ".join(INITS) + " |")
    print("|---|---|---|---|" + "---|" * len(INITS))
    rows = [(m, i, d, s) for m in MODELS for i in INTERSECTIONS for d in DIFFERENCES for s in MEMBERSHIPS]
    for model, intersection, difference, membership in tqdm(rows, unit="form", disable=None):
        names = {"model": model, "intersection": intersection, "difference": difference, "membership": membership}
        solved = []
        for init in INITS:
            form = dataclasses.replace(FORM, init=init, **names)
            heads = [learn(form, POINTS, CLASSES, seed) for seed in seeds]
            solved.append(f"{sum(accuracy(head, POINTS, CLASSES) == 1 for head in heads)}/{len(seeds)}")
        tqdm.write(f"| {' | '.join(names.values())} | {' | '.join(solved)} |", file=sys.stdout)
        sys.stdout.flush()


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("xor", __doc__ or "")
    parser.add_argument("--seeds", type=positive_int, default=10, help="how many seeds to try")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--noise", type=float, default=0.25, help="standard deviation of the noisy samples")
    parser.add_argument("--no-plots", action="store_true", help="print only")
    parser.add_argument("--out", type=Path, default=Path("runs/xor"), help="folder for the plot")
    parser.add_argument("--table", action="store_true", help="print a table over all forms and inits, and nothing else")
    options = parser.parse_args(arguments)
    if not 0 <= options.first_seed < 2**62 or not 0 < options.noise < math.inf:
        parser.error(
            f"got --first-seed {options.first_seed} and --noise {options.noise}; expected --first-seed from 0 to 2^62 "
            "and a finite --noise above 0"
        )
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.table:
        table(seeds)
        return
    evaluate(seeds, options)


def evaluate(seeds: range, options: argparse.Namespace) -> None:
    """Learn XOR from every seed, and print what came of it."""
    solved, noisy = [], []
    for seed in tqdm(seeds, desc="xor", unit="seed", disable=None):
        head = learn(FORM, POINTS, CLASSES, seed)
        solved.append(accuracy(head, POINTS, CLASSES) == 1)
        generator = torch.Generator().manual_seed(seed)
        training = draw(TRAINING_SAMPLES, options.noise, generator)
        head = learn(FORM, *training, seed)
        noisy.append(accuracy(head, *draw(TEST_SAMPLES, options.noise, generator)))
        if seed == seeds[0] and not options.no_plots:
            plot(head, training, options.out / "xor.png")
    best = bayes_rate(options.noise)
    print(f"four points: solved {sum(solved)}/{len(seeds)}")
    print(
        f"noisy samples (standard deviation {options.noise}): test accuracy {min(noisy):.4f} to {max(noisy):.4f}, mean "
        f"{sum(noisy) / len(noisy):.4f}; Bayes rate {best:.4f}; at least 99%: "
        f"{sum(value >= 0.99 for value in noisy)}/{len(seeds)}"
    )
    if unsolved := [seed for seed, is_solved in zip(seeds, solved, strict=True) if not is_solved]:
        print(f"not solved: seeds {', '.join(map(str, unsolved))}")


if __name__ == "__main__":
    sys.exit(run("xor", command))
