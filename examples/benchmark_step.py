"""What a Tversky head costs in training: `python examples/benchmark_step.py`.

A training step (forward, cross-entropy, backward, AdamW) of the Tversky ResNet-18 over that of its linear twin, in one
run and interleaved: 64 images of 32x32 with the small stem, and 8 of 224x224 with the one for ImageNet. The control is
the linear twin against a second copy of itself: 1 on a quiet machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tnn_runtime.bench import Estimate, interleave, machine, ratio
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import ModelConfig, build_model
from tnn_train.training.loop import pick_device

SIZES = ((64, 32, "small"), (8, 224, "imagenet"))
BACKBONE = "resnet18"
VARIANTS = {"tversky": "tversky", "linear": "linear", "control": "linear"}
LEARNING_RATE = 1e-5
"""So small that the models, and with them the work, stay much the same over all steps."""


@dataclass(frozen=True)
class Row:
    """One size: median milliseconds of a step, and ratios in pairs of blocks with their 95% bootstrap intervals."""

    batch: int
    side: int
    stem: str
    tversky_ms: float
    linear_ms: float
    ratio: Estimate
    control: Estimate
    samples_ms: dict[str, list[list[float]]]


def measure(
    size: tuple[int, int, str],
    device: torch.device,
    rounds: int,
    *,
    compiled: bool,
    mixed: bool,
    progress: Callable[[], object],
) -> Row:
    """Measure one size: batch, side of the images in pixels, and stem."""
    batch, side, stem = size
    torch.manual_seed(0)
    batches = [(torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))) for _ in range(2)]
    inputs: list[Any] = [(images.to(device), labels.to(device)) for images, labels in batches]
    steps = {
        name: _step(ModelConfig(BACKBONE, head, stem=stem), device, compiled=compiled, mixed=mixed)
        for name, head in VARIANTS.items()
    }
    for step in steps.values():
        step(inputs[0])  # Compiles, and makes the optimizer's state.
    random = np.random.default_rng(0)
    samples = interleave(steps, inputs, rounds, random, progress)
    milliseconds = {name: [[1e3 * value for value in turn] for turn in turns] for name, turns in samples.items()}
    return Row(
        batch,
        side,
        stem,
        float(np.median(milliseconds["tversky"])),
        float(np.median(milliseconds["linear"])),
        ratio([samples["tversky"]], [samples["linear"]], random),
        ratio([samples["control"]], [samples["linear"]], random),
        milliseconds,
    )


def _step(config: ModelConfig, device: torch.device, *, compiled: bool, mixed: bool) -> Callable[[Any], object]:
    torch.manual_seed(0)
    model = build_model(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    if compiled:
        model.compile()

    def step(batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def table(rows: Sequence[Row]) -> str:
    """Return the measurements as Markdown."""
    lines = ["| images, stem | linear, ms | Tversky, ms | Tversky / linear | control |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.batch} of {row.side}x{row.side}, {row.stem} | {row.linear_ms:.2f} | {row.tversky_ms:.2f} "
            f"| {row.ratio.text(4)} | {row.control.text(4)} |"
        )
    return "\n".join(lines)


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("benchmark_step", __doc__ or "")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument(
        "--rounds", type=positive_int, default=20, help="rounds in which each of the three gets its turn"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="measure the models under torch.compile")
    parser.add_argument("--amp", action="store_true", help="measure them in mixed precision (bfloat16)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_step"), help="folder to write to")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    with tqdm(total=len(SIZES) * options.rounds, desc="timing", unit="round", disable=None) as progress:
        rows = [
            measure(size, device, options.rounds, compiled=options.compile, mixed=options.amp, progress=progress.update)
            for size in SIZES
        ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    settings = {"threads": options.threads, "device": name, "compile": options.compile, "amp": options.amp}
    about = {**machine(), "torch": torch.__version__, **settings}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "benchmark_step.json"
    report = {"machine": about, "backbone": BACKBONE, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run("benchmark_step", command))
